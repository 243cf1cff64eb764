/** What to do next, for every code of the catalogue and the network's own errors. docs/errors.md says the same at length. */
import { ClientError, type ClientErrorCode } from '../protocol/client-errors.js'
import { isAbort, isErrno, RoostError, type ErrorCode } from '../core/errors.js'
import { CloudError, type CloudErrorCode } from '../openstack/cloud-error.js'
import { UsageError } from './exit-codes.js'

export const ERROR_HINTS: Readonly<Record<ErrorCode, string>> = {
  ID_MALFORMED: 'Check the id for typing errors; `roost snapshots` lists the valid ones.',
  REQUEST_MALFORMED: 'Check the arguments; if they are right, client and server may be of different versions.',
  FRAME_MALFORMED: 'Client and server may be of different versions, or a proxy changes bodies in between.',
  BODY_TRUNCATED: 'The connection broke. Run the command again: what arrived is not sent twice.',
  AUTH_REQUIRED: 'Check the token in ROOST_TOKEN_FILE or ROOST_TOKEN; it may have been revoked or have expired.',
  AUTH_FORBIDDEN: 'The token lacks the scope, the repository or the source name; `roost token list` (as admin) shows its grants.',
  CHUNK_NOT_READABLE: 'Chunks are readable only through a snapshot that lists them; if this came from a plain restore, run it again.',
  ROUTE_UNKNOWN: 'Check the address in ROOST_REPOSITORY: http(s)://host:port/NAME. Something other than Roost may answer there.',
  REPOSITORY_UNKNOWN: 'Check the name; `roost repo list` shows those of the server, `roost repo create NAME` makes one.',
  SNAPSHOT_UNKNOWN: 'Check the id; `roost snapshots` lists those that exist.',
  TARGET_UNKNOWN: '`roost target list` shows this repository\'s targets.',
  TOKEN_UNKNOWN: 'Check the id; `roost token list` shows the tokens.',
  KEY_SLOT_UNKNOWN: 'Check the id; `roost key list` shows the slots.',
  JOB_UNKNOWN: '`roost jobs` lists the configured jobs and the latest runs with their ids.',
  REPLICATION_UNKNOWN: '`roost replicate list` shows the replications of this repository.',
  REQUEST_TIMEOUT: 'The connection was too slow or stalled. Run the command again.',
  REPOSITORY_EXISTS: 'Choose another name, or use the repository that is there.',
  TARGET_EXISTS: 'Choose another name, or remove the other target first.',
  TARGET_NEEDED: 'Add another target, or run `roost target drain` on this one first; `roost target status` says what is where.',
  COMMIT_INCOMPLETE: 'Run the backup again: what arrived is found present.',
  COMMIT_CONFLICT: 'This session already committed something else. Run the backup again.',
  KEY_SLOT_LAST: 'Add another key slot first (`roost key add`): without any, the repository could never be opened again.',
  COLLECTION_STALE: 'Nothing is lost, and nothing more is removed by that run. Run `roost gc` again.',
  JOB_CANCELLED: 'Somebody ended this run with `roost jobs cancel`. What it did stays; run it again for the rest.',
  JOB_NOT_CANCELLABLE: 'A target is filled in the background whoever watches; `roost target set NAME --disable` keeps it from being filled.',
  SNAPSHOT_PROTECTED: '`roost snapshot unprotect ID` (an administrator) takes the protection back.',
  RETENTION_LOCKED: 'A retention lock ends by itself and binds administrators too; `roost snapshots` shows until when. docs/retention.md says whose clock counts.',
  REPLICA_CONFLICT: 'Find out which server signs with a key that is another\'s: docs/replication.md §Conflicts. Nothing was overwritten.',
  BOOT_FAILED: 'Start it by hand and look: `roost boot SNAPSHOT`; docs/boot.md says what a test needs.',
  POLICY_KEEPS_NOTHING: 'State at least one --keep rule that fits; `roost forget --dry-run` shows what would happen. --keep-none consents.',
  INDEX_REBUILD_NEEDED: 'Run `roost rebuild`: it makes the index anew from the packs. No data is lost.',
  REPOSITORY_BUSY: '`roost jobs` shows what runs. Wait for it, or end it with `roost jobs cancel ID`, and run the command again.',
  SESSION_LOST: 'The server restarted or closed the session. Run the command again: what arrived is found present.',
  LENGTH_REQUIRED: 'A proxy between client and server may strip Content-Length.',
  BODY_TOO_LARGE: 'A proxy may merge bodies, or client and server may be of different versions.',
  MEDIA_TYPE_UNSUPPORTED: 'A proxy may change Content-Type, or client and server may be of different versions.',
  TREE_MALFORMED: 'The snapshot tree is not well formed. Nothing was written outside the destination; please report this.',
  LIMIT_EXCEEDED: 'docs/limits.md lists every limit with its reason.',
  KEY_UNLOCK_FAILED: 'The passphrase or secret key opens no slot of this repository.',
  SIGNER_UNKNOWN: '`roost replicate trust` takes in the snapshots of another repository, if that is what you want.',
  TOO_MANY_REQUESTS: 'The server is at a limit. Run the command again a little later.',
  INTERNAL: 'The server\'s log has the cause under the request id.',
  CHUNK_MISSING: 'Run `roost check --read-data` on the repository; docs/operations.md §Damage says what can be saved.',
  CHUNK_CORRUPT: 'Run `roost check --read-data` on the repository; docs/operations.md §Damage says what can be saved.',
  OBJECT_TOO_SHORT: 'Run `roost check --heal` on the repository: another target may have the whole object.',
  PACK_CORRUPT: 'Run `roost check --read-data` on the repository; docs/operations.md §Damage says what can be saved.',
  SNAPSHOT_CORRUPT: 'Do not trust this snapshot. If --verify-key is set, check that it is the key of this repository.',
  REPOSITORY_CORRUPT: 'The header or keys on the target are damaged or of another repository; docs/operations.md §Damage.',
  INDEX_CORRUPT: 'Run `roost rebuild`: the index is a cache and is made anew from the packs.',
  PEER_REFUSED: 'The peer is not the repository that was named, of another family, or its certificate is not accepted. Check its address, --peer-verify-key and --peer-ca-file; docs/replication.md.',
  SERVER_BUSY: 'The server sheds load. Run the command again a little later.',
  SERVER_DRAINING: 'The server is shutting down. Run the command again when it is back.',
  NOT_YET_DURABLE: 'Nothing is lost: the server finishes the upload by itself. `roost snapshots` shows when it is durable.',
  STORE_UNAVAILABLE: 'The server (or its storage target) cannot be reached. Check that it runs, then run the command again.',
  STORE_REFUSED: 'The storage refused: check free space, permissions and credentials of the server\'s target.',
  PEER_UNAVAILABLE: 'The peer server cannot be reached or is busy. The next run goes on where this one stopped.',
  SPOOL_FULL: 'The server\'s spool is full: its target is slow or down, or its disk is. Run the command again later.',
}

const ERRNO_HINTS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'Nothing listens at that address. Is `roost server` running, and host and port right?',
  ENOTFOUND: 'The host name does not resolve. Check ROOST_REPOSITORY.',
  EAI_AGAIN: 'The host name does not resolve now. Check the network.',
  ETIMEDOUT: 'The server does not answer. Check the network and firewalls.',
  EHOSTUNREACH: 'The server is not reachable. Check the network.',
  ECONNRESET: 'The server closed the connection. Run the command again.',
  EPIPE: 'The other side closed the connection.',
  ENOSPC: 'The disk is full.',
  EACCES: 'Permission denied. Root may be needed.',
  EPERM: 'Not permitted. Root may be needed.',
  ENOENT: 'Check the path.',
  EEXIST: 'The destination exists already. Choose another, or say --overwrite.',
  EADDRINUSE: 'Another process listens there. Choose another address with --listen.',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'The certificate is self-signed: name it with ROOST_CA_FILE.',
  SELF_SIGNED_CERT_IN_CHAIN: 'Name the signing authority with ROOST_CA_FILE.',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'Name the signing authority with ROOST_CA_FILE.',
  CERT_HAS_EXPIRED: 'The server\'s certificate has expired.',
}

const CLIENT_HINTS: Readonly<Record<ClientErrorCode, string>> = {
  SERVER_UNREACHABLE: 'Is `roost server` running, and are host and port in ROOST_REPOSITORY right?',
  TLS_REFUSED: 'Name the authority that signed the server\'s certificate with ROOST_CA_FILE, and use the name that the certificate is for.',
  PLAIN_HTTP_REFUSED: 'Use https, or say --allow-plain-http where the network itself is trusted.',
  URL_MALFORMED: 'Write http(s)://host:port/NAME.',
  REPLY_MALFORMED: 'Something other than Roost may answer at that address, or client and server are of different versions.',
  SOURCE_NOT_REPEATABLE: 'Standard input cannot be read again. Run the whole pipe again: what arrived is found present.',
  PUSH_NOT_CONVERGING: 'The server lost the session again and again. Look at its log, then run the backup again.',
  TRANSFER_DAMAGED: 'Bytes changed on the way or in memory. Suspect the network hardware, a proxy, or the RAM of either machine.',
  PROGRAM_MISSING: 'Install it where `roost backup` runs; docs/sources.md says what needs which.',
  PROGRAM_FAILED: 'The message has its own words; run the same program by hand to see more.',
  SOURCE_REFUSED: 'docs/sources.md says what is read, and why not the rest.',
  SOURCE_IN_USE: 'Back it up while it runs with `roost backup --vm`, from a snapshot (--lvm-snapshot), or stop the machine first.',
  NBD_UNREACHABLE: 'Check the address, and that the NBD server runs; `nbdinfo --list URI` tells what it exports.',
  NBD_REFUSED: 'Check the name of the export (`nbdinfo --list URI`) and what the server wants: TLS, a certificate.',
  NBD_FAILED: 'The source could not be read there; the server\'s log may say why. No snapshot was made. Run the backup again.',
  NBD_BROKEN: 'The server does not keep to the NBD protocol: nothing that it says is used. Try `nbdinfo URI`; update or report it.',
  SCANNER_FAILED: 'The reading thread ended unexpectedly. Run again with --verbose, and report it.',
  SNAPSHOT_KEY_MISMATCH: 'The snapshot is signed by another key than the one expected: wrong --verify-key, or a forged server. Do not restore it.',
  MACHINE_MALFORMED: 'Its disks are not affected: `roost ls` shows them, `roost restore SNAPSHOT:DISK --to-file FILE` brings them back.',
  MACHINE_UNREACHABLE: 'Check that the machine runs, and the path of its QMP socket or its name in `virsh list`; docs/machines.md says who may use it.',
  MACHINE_BUSY: 'Wait for the other one to end, or end it. A monitor serves one program at a time: give QEMU another -qmp for backups. docs/machines.md.',
  MACHINE_UNSUPPORTED: 'docs/machines.md says what can be saved while it runs; a disk may be left out with --exclude-disk NAME.',
  QEMU_REFUSED: 'Nothing of it was changed for the guest. docs/machines.md lists what QEMU refuses, and why.',
  FLEECE_FAILED: 'Give the fleece more room or a faster disk: --fleece-dir DIR, --fleece-size SIZE; or run when the guest writes less. docs/machines.md §Fleece.',
  POINT_IN_TIME_LOST: 'No snapshot was made, and nothing is lost: run the backup again. If the fleece was full or slow, see docs/machines.md §Fleece.',
  WATCHDOG_FAILED: 'The machine was not touched. Look at limits of processes and memory for this user, then run the backup again.',
  IMAGE_UNREADABLE: 'docs/files-from-images.md says what can be read inside an image, and how to look into others.',
  HOOK_FAILED: 'Run the command by hand to see why it fails; --hook-timeout gives it longer. docs/hooks.md says what a hook is given.',
  QEMU_FAILED: 'docs/boot.md says what is needed and what the options mean; --verbose shows how QEMU was started.',
  DESTINATION_REFUSED: 'Choose another destination, or make it as large as the image.',
}

const CLOUD_HINTS: Readonly<Record<CloudErrorCode, string>> = {
  CLOUD_UNAVAILABLE: 'See that Keystone and the named service run and can be reached from here, then run the command again.',
  CLOUD_REFUSED: 'docs/openstack.md lists the roles that are needed. `openstack token issue` with the same settings shows whether the login works.',
  CLOUD_UNKNOWN: 'Check the id, and that it is of the project (and region) that the credentials are for.',
  CLOUD_CONFLICT: 'Look at it with the openstack client: something else is being done to it, or a lock is on it.',
  CLOUD_NOT_CONFIGURED: 'Set OS_CLOUD or --os-cloud to a name in clouds.yaml, or the OS_* variables.',
  SERVER_MARKED: 'Wait for that backup to end. `openstack server show` has its mark.',
  PLAN_UNRESOLVED: 'Write a mapping file (--map FILE; docs/openstack.md has its form), and look at the plan with --dry-run.',
  IMAGE_DAMAGED: 'Run the command again. When it happens again, suspect a proxy, the network, or memory of either machine.',
  SERVER_FAILED: '`openstack server show` and Nova\'s log say more. What was made stays, and was named above.',
}

/** How an error is told: its code if it has one, one sentence, and what to do next. */
export interface ToldError { readonly code: string; readonly message: string; readonly hint?: string }

export function tellError(error: unknown): ToldError {
  if (error instanceof UsageError) return { code: 'USAGE', message: error.message }
  if (isAbort(error)) return { code: 'INTERRUPTED', message: 'Interrupted.' }
  if (error instanceof RoostError) {
    const cause = findErrno(error.cause)
    const hint = (cause === undefined ? undefined : ERRNO_HINTS[cause.code!]) ?? ERROR_HINTS[error.code]
    const message = cause === undefined || error.message.includes(cause.message) ? error.message : `${error.message} (${cause.message})`
    return { code: error.code, message, hint }
  }
  if (error instanceof ClientError) {
    const cause = findErrno(error.cause)
    const told = cause === undefined || error.message.includes(cause.message) ? error.message : `${error.message} (${cause.message})`
    return { code: error.code, message: told, hint: CLIENT_HINTS[error.code] }
  }
  if (error instanceof CloudError) return { code: error.code, message: error.message, hint: CLOUD_HINTS[error.code] }
  const errno = findErrno(error)
  if (errno !== undefined) {
    const hint = ERRNO_HINTS[errno.code!]
    return { code: errno.code!, message: errno.message, ...(hint === undefined ? {} : { hint }) }
  }
  return { code: 'INTERNAL', message: error instanceof Error ? error.message : 'unknown failure',
    hint: 'This is a defect of Roost. Run again with --verbose for the stack, and report it.' }
}
function findErrno(error: unknown): NodeJS.ErrnoException | undefined {
  for (let at: unknown = error, depth = 0; at instanceof Error && depth < 6; at = at.cause, depth++) {
    if (isErrno(at) && !(at instanceof RoostError)) return at
    if (at instanceof AggregateError && at.errors.length > 0) return findErrno(at.errors[0])
  }
  return undefined
}
