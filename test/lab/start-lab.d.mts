export interface LabDescription {
  readonly directory: string
  readonly environment: Readonly<Record<string, string>>
  /** Clouds: tempauth, tempauth-wrong-password and, with Keystone, demo, admin, reader, wrong-password, wrong-region, demo-appcred. */
  readonly cloudsYaml: string
  readonly swiftAuthUrl: string
  readonly keystoneUrl?: string
  /** Addresses in the catalog; something answers there only when the lab has these services. */
  readonly glanceUrl?: string
  readonly novaUrl?: string
  readonly projectId?: string
  readonly s3: { readonly endpoint: string; readonly accessKeyId: string; readonly secretAccessKey: string
    readonly keystoneEndpoint?: string; readonly keystoneAccessKeyId?: string; readonly keystoneSecretAccessKey?: string }
}
export interface LabOptions { readonly directory: string; readonly services: readonly ('swift' | 'keystone' | 'glance' | 'nova')[]; readonly tokenSeconds?: number; readonly devices?: number; readonly replicas?: number
  /** Default 1, at most 3: devices are theirs in turn. */
  readonly objectServers?: number }
export function labInstalled(): boolean
export function cloudInstalled(): boolean
export function startLab(options: LabOptions): Promise<LabDescription>
export function controlLab(lab: Pick<LabDescription, 'directory' | 'environment'>, ...words: string[]): void
export function stopLab(lab: Pick<LabDescription, 'directory' | 'environment'>): void
