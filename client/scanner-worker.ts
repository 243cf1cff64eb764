/** Entry of the scanning thread: walks, reads, cuts and hashes with synchronous calls, beside the main thread's network work. */
import { parentPort, workerData } from 'node:worker_threads'
import { assert } from '../src/core/assert.js'
import type { ScanJob } from './scan-protocol.js'
import { runScan } from './scan-thread.js'

assert(parentPort !== null, 'this file is the entry of a worker thread')
await runScan(workerData as ScanJob, parentPort)
parentPort.close()
