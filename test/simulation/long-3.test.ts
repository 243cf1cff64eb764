/** Part 4 of the long batch. */
import { longBatch } from './long.js'

longBatch(3)
