/** The OpenAPI 3.1 description, generated from the table of endpoints and the schemas that validate requests. */
import { LIMITS } from '../core/limits.js'
import { PROTOCOL_VERSION } from '../protocol/routes.js'
import { ENDPOINTS, type Endpoint } from './endpoints.js'
import { REPLY_SCHEMAS, parametersOf, type JsonSchema } from './schemas.js'

export interface OpenApiDocument {
  readonly openapi: '3.1.0'
  readonly info: { readonly title: string; readonly version: string; readonly description: string }
  readonly paths: Readonly<Record<string, Readonly<Record<string, unknown>>>>
  readonly components: Readonly<Record<string, unknown>>
}

export function describeApi(): OpenApiDocument {
  const paths: Record<string, Record<string, unknown>> = {}
  for (const [name, endpoint] of Object.entries<Endpoint>(ENDPOINTS)) {
    const path = paths[openApiPath(endpoint.path)] ??= {}
    path[endpoint.method.toLowerCase()] = describeOperation(name, endpoint)
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Roost', version: String(PROTOCOL_VERSION), description: 'Deduplicating, encrypted backup repository server.' },
    paths,
    components: {
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'roost_<token id>_<secret>' } },
      schemas: { Error: REPLY_SCHEMAS.error },
    },
  }
}

/** `/a/:b` as OpenAPI writes it: `/a/{b}`. */
export const openApiPath = (path: string): string => path.replace(/:([a-z]+)/g, '{$1}')

function describeOperation(name: string, endpoint: Endpoint): Record<string, unknown> {
  const parameters = [
    ...describeParameters('path', parametersOf(endpoint.path)?.properties),
    ...describeParameters('query', endpoint.query?.properties as Record<string, JsonSchema> | undefined),
  ]
  return {
    operationId: name,
    summary: endpoint.summary,
    description: `Access: ${endpoint.access}.`,
    security: endpoint.access === 'public' ? [] : [{ bearer: [] }],
    ...(parameters.length === 0 ? {} : { parameters }),
    ...describeBody(endpoint),
    responses: {
      [endpoint.status]: { description: 'Done.', ...describeReply(endpoint) },
      default: { description: 'A typed error.', content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } } },
    },
  }
}

function describeParameters(place: 'path' | 'query', properties: Readonly<Record<string, JsonSchema>> = {}): Record<string, unknown>[] {
  return Object.entries(properties).map(([name, schema]) => ({ name, in: place, required: place === 'path', schema }))
}
function describeBody({ json, octets }: Endpoint): Record<string, unknown> {
  if (json !== undefined)
    return { requestBody: { required: true, description: `At most ${LIMITS.jsonBytesMax} bytes.`, content: { 'application/json': { schema: json } } } }
  if (octets === undefined) return {}
  const description = `At most ${octets.bytesMax} bytes, in units of ${octets.unitBytes}; Content-Length is required.`
  return { requestBody: { required: true, description, content: { [octets.media]: { schema: { type: 'string', format: 'binary' } } } } }
}
function describeReply({ reply }: Endpoint): Record<string, unknown> {
  if (reply === undefined) return {}
  if (typeof reply === 'string') return { content: { [reply]: { schema: { type: 'string', format: 'binary' } } } }
  return { content: { 'application/json': { schema: reply } } }
}
