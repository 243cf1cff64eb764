/** Part 1 of the long batch. */
import { longBatch } from './long.js'

longBatch(0)
