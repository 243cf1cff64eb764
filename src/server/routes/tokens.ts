/** Bearer tokens of this server. */
import { RoostError } from '../../core/errors.js'
import type { CreateTokenRequest } from '../../core/messages.js'
import { parameter, serve, type Routes } from '../route-context.js'

export const tokenRoutes: Routes = (app, { tokens }) => {
  serve(app, 'listTokens', async () => tokens.list())
  serve(app, 'createToken', async (request) => {
    const wanted = request.body as CreateTokenRequest
    // Administration cannot be limited to a source; a grant that says so would mislead whoever wrote it.
    if (wanted.grants.some((grant) => grant.source !== undefined && grant.scopes.includes('admin')))
      throw new RoostError('REQUEST_MALFORMED', 'A grant that is limited to a source cannot give the scope admin.')
    return tokens.create(wanted)
  })
  serve(app, 'revokeToken', async (request) => { await tokens.revoke(parameter(request, 'token')) })
}
