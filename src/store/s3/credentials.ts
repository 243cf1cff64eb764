/** Where S3 credentials come from: AWS's own chain, or one file. The only importer of @aws-sdk/credential-providers. */
import { fromIni, fromNodeProviderChain } from '@aws-sdk/credential-providers'

export interface CredentialWishes {
  readonly profile?: string
  /** In the form of ~/.aws/credentials, and in its place. */
  readonly credentialsFile?: string
  readonly environment: Readonly<Record<string, string | undefined>>
}
export interface S3Credentials {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string
  readonly expiration?: Date
}

/** A fresh provider: what it read is remembered by it alone, so that a new one reads anew. */
export function credentialProvider({ profile, credentialsFile, environment }: CredentialWishes): () => Promise<S3Credentials> {
  const named = profile === undefined ? {} : { profile }
  if (credentialsFile !== undefined) return fromIni({ ...named, filepath: credentialsFile, ignoreCache: true })
  const { AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey, AWS_SESSION_TOKEN: sessionToken } = environment
  // The chain's own first step, from the environment that this store was given.
  if (profile === undefined && accessKeyId !== undefined && secretAccessKey !== undefined)
    return () => Promise.resolve({ accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) })
  return fromNodeProviderChain({ ...named, ignoreCache: true })
}
