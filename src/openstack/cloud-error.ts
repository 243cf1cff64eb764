/** What goes wrong between us and a cloud's services. Swift targets and the command line say it in their own codes. */
export type CloudErrorCode =
  /** Not reachable, or overloaded: it may pass. */
  | 'CLOUD_UNAVAILABLE'
  /** It answers, and says no: credentials, roles, quota, or it is not what it should be. */
  | 'CLOUD_REFUSED'
  /** The named thing is not there (404). */
  | 'CLOUD_UNKNOWN'
  /** Not in the state that this needs (409): locked, in use. */
  | 'CLOUD_CONFLICT'
  /** clouds.yaml or the OS_* variables do not say where and as whom to log in. */
  | 'CLOUD_NOT_CONFIGURED'
  /** Another backup of this server runs, or left a mark that nobody here may judge. */
  | 'SERVER_MARKED'
  /** The record of a server refers to what this cloud does not have; nothing was created. */
  | 'PLAN_UNRESOLVED'
  /** Glance has other bytes than were sent. */
  | 'IMAGE_DAMAGED'
  /** Nova made the server and says that it failed, or did not finish in time. */
  | 'SERVER_FAILED'

/** `status`: of HTTP, where there was an answer. */
export interface CloudErrorFacts { readonly status?: number; readonly retryAfterMs?: number }

/** Its message is a sentence for people and never has a secret in it. */
export class CloudError extends Error {
  override readonly name = 'CloudError'
  constructor(readonly code: CloudErrorCode, message: string, readonly facts: CloudErrorFacts = {}, options?: ErrorOptions) { super(message, options) }
}
export const hasCloudCode = (error: unknown, code: CloudErrorCode): error is CloudError => error instanceof CloudError && error.code === code
