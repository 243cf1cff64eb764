/** Part 2 of the long batch. */
import { longBatch } from './long.js'

longBatch(1)
