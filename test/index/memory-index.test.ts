import { openMemoryIndex } from '../../src/index/memory-index.js'
import { chunkIndexConformance } from '../conformance/chunk-index.js'

chunkIndexConformance('memory', { open: async () => openMemoryIndex() })
