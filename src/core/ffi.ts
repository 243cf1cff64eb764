/** Calls into C libraries, synchronous and typed by their caller. The only importer of koffi. */
import koffi from 'koffi'

export { koffi }
