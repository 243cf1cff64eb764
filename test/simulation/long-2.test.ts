/** Part 3 of the long batch. */
import { longBatch } from './long.js'

longBatch(2)
