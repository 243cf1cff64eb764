/** bin/roost of the build that the tests belong to. */
import { main } from '../../src/cli/main.js'

await main()
