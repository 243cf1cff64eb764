/** One door to all kinds of sources: by mode. */
import type { ChunkerParameters } from '../src/core/messages.js'
import { scanFiles, type FilesConfig } from './files/scan-files.js'
import { scanImage, type ImageConfig } from './image/scan-image.js'
import { scanStdin, type StdinConfig } from './sources/stdin.js'
import type { ScanContext, ScanResult } from './upload/chunk-sink.js'

/** Plain values only: it is cloned into the scanning thread. */
export type SourceConfig =
  | { readonly mode: 'files' } & FilesConfig
  | { readonly mode: 'image' } & ImageConfig
  | { readonly mode: 'stdin' } & StdinConfig

/** Reads the whole source into `context.sink`. Problems of single paths are reported, not thrown.
 *  @throws what makes the whole source unreadable */
export async function scanSource(config: SourceConfig, context: ScanContext, chunker: ChunkerParameters): Promise<ScanResult> {
  switch (config.mode) {
    case 'files': return await scanFiles(config, context, chunker)
    case 'image': return await scanImage(config, context, chunker)
    case 'stdin': return await scanStdin(config, context, chunker)
  }
}
