/** Key slots of a repository. */
import type { AddKeySlotRequest } from '../../core/messages.js'
import { repositoryOf } from '../gate.js'
import { parameter, serve, type Routes } from '../route-context.js'

export const keyRoutes: Routes = (app) => {
  serve(app, 'listKeySlots', async (request) => repositoryOf(request).listKeySlots())
  serve(app, 'addKeySlot', async (request) => repositoryOf(request).addKeySlot(request.body as AddKeySlotRequest))
  serve(app, 'removeKeySlot', async (request) => { await repositoryOf(request).removeKeySlot(parameter(request, 'slot')) })
  serve(app, 'rotateKeyfile', async (request) => repositoryOf(request).rotateKeyfile())
}
