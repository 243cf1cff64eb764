// One broken line each (`and`: more, where one alone changes nothing): where, what, and which test files must notice. `from` occurs exactly
// once in its file.
import { GC_MUTATIONS } from './gc-mutations.mjs'

const PACK = ['repo/pack-format.test.ts', 'formats/formats.test.ts']
const CRASH = ['repo/pack-writer.test.ts', 'crash/push-crash.test.ts']
const PROTOCOL = ['hostile/protocol.test.ts']
const TREES = ['hostile/trees.test.ts']
const DAMAGE = ['hostile/damage.test.ts']
const RESTORE = ['client/restore.test.ts']
const GC = ['gc/field-accidents.test.ts', 'gc/collect.test.ts']
const INDEX = ['index/lmdb-index.test.ts']
const RETENTION = ['repo/retention/retention.test.ts', 'repo/retention/witnessed-time.test.ts']
const REPLICATION = ['replication/engine.test.ts']

export const MUTATIONS = [
  ...GC_MUTATIONS,

  // The pack codec.
  { name: 'pack: every block under one nonce', file: 'src/repo/pack-format.ts', from: 'nonce.writeUInt32LE(offset, 0)', to: 'nonce.writeUInt32LE(0, 0)', tests: PACK },
  { name: 'pack: trailer and block share a label', file: 'src/repo/pack-format.ts', from: 'nonce.writeUInt32LE(label, 8)', to: 'nonce.writeUInt32LE(0, 8)', tests: PACK },
  { name: 'pack: the header is not bound', file: 'src/repo/pack-format.ts', from: '({ key: keyedDigest(packKey, header), header })',
    to: '({ key: keyedDigest(packKey, header.subarray(32)), header: header.subarray(0, 0) })', tests: PACK },
  { name: 'pack: an unauthentic part is opened anyway', file: 'src/core/seal.ts', from: '    return undefined\n  }\n  return plain', to: '    return plain\n  }\n  return plain', tests: PACK },
  { name: 'pack: chunks of a block all start at its beginning', file: 'src/repo/pack-format.ts', from: 'within += rawBytes[entry]!', to: 'within += 0', tests: PACK },
  { name: 'pack: a chunk is not compared with its id', file: 'src/repo/pack-format.ts', from: '|| hashChunk(dedupKey, bytes, kind).compare(id, 0, 32, 0, 32) !== 0)', to: ')', tests: DAMAGE },
  { name: 'pack: check does not compare a pack with its name', file: 'src/repo/care/check-pack.ts', from: 'if (digest.hex() !== row.packId)', to: 'if (false)', tests: DAMAGE },

  // What a client must prove.
  { name: 'proof: any proof will do for stored chunks', file: 'src/index/chunk-table.ts', from: 'if (stride === ID_PROOF_BYTES && !proofMatches(value, ids, row * stride + CHUNK_ID_BYTES)) continue', to: '', tests: PROTOCOL },
  { name: 'proof: any proof will do for pending chunks', file: 'src/repo/pack-intake.ts',
    from: '|| !timingSafeEqual(pending.proof, idProof.subarray(CHUNK_ID_BYTES, ID_PROOF_BYTES))) return', to: ') return', tests: PROTOCOL },
  { name: 'proof: a frame is believed its id', file: 'src/repo/seal-job.ts', from: 'if (idProof.compare(frameId(table, i), 0, 32, 0, 32) !== 0)', to: 'if (false)', tests: PROTOCOL },
  { name: 'proof: commit asks for presence, not for pins', file: 'src/repo/commit-snapshot.ts', from: 'if (states[i] !== REF_STATES.pinned)', to: 'if (states[i] === REF_STATES.missing)', tests: PROTOCOL },
  { name: 'proof: reading asks for presence, not for inheritance', file: 'src/repo/read-chunks.ts', from: 'if (state === REF_STATES.inherited) return READ_STATUS.ok',
    to: 'if (state !== REF_STATES.missing) return READ_STATUS.ok', tests: PROTOCOL },
  { name: 'proof: a push session reads data', file: 'src/repo/read-chunks.ts', from: "if (session.kind === 'push' && locations.kinds[i] === CHUNK_KINDS.data)", to: 'if (false)', tests: PROTOCOL },
  { name: 'proof: a session answers to any token', file: 'src/server/gate.ts', from: 'if (session.tokenId !== principal.tokenId)', to: 'if (false)', tests: PROTOCOL },
  { name: 'proof: a parent of any source', file: 'src/repo/sessions.ts', from: 'if (parent === undefined || parent.source !== request.source)', to: 'if (parent === undefined)', tests: PROTOCOL },

  // Collection (docs/gc.md): what the model takes away, taken from the code.
  { name: 'collection: a pack goes though a session pins it', file: 'src/index/collection-writes.ts', from: ' || pins.some(({ bits }) => hasBit(bits.pinned, entry))', to: '', tests: INDEX },
  { name: 'collection: pins end with the commit', file: 'src/index/lmdb-index.ts', from: 'if (this.#collection.collecting !== 0) this.#pins.give(key, HELD)', to: '', tests: INDEX },
  { name: 'collection: the root of a forgotten snapshot is not held', file: 'src/index/lmdb-index.ts', from: 'const live = this.#collection.collecting === 0 ? undefined : this.#chunks.position(root)',
    to: 'const live = undefined', tests: INDEX },
  { name: 'collection: an overtaken one goes on', file: 'src/index/collection-table.ts', from: 'if (this.collecting !== epoch) throw staleCollection()', to: '', tests: INDEX },
  { name: 'collection: an overtaken one goes on (in memory)', file: 'src/index/memory-index.ts', from: 'if (this.#collecting !== epoch) throw staleCollection()', to: '', tests: GC },
  { name: 'collection: entries move to packs that are not there', file: 'src/index/collection-writes.ts', from: 'if (to !== undefined && packs.get(packOfPosition(to)) !== undefined)', to: 'if (to !== undefined)', tests: INDEX },
  { name: 'collection: revived entries do not end it', file: 'src/index/pack-writes.ts', from: 'if (collection.collecting !== 0) {', to: 'if (false) {', tests: INDEX },
  { name: 'collection: no second look at the parent', file: 'src/repo/sessions.ts', from: 'if (inherited && await index.getSnapshot(snapshot!.snapshotId) === undefined)', to: 'if (false)', tests: GC },
  { name: 'collection: inherited pins are not followed', file: 'src/gc/mark.ts', from: 'if (hasBit(inherited, entry) && !this.marks.reach(', to: 'if (false && !this.marks.reach(', tests: GC },
  { name: 'collection: nodes in later packs are not followed', file: 'src/gc/mark.ts', from: '&& kind === CHUNK_KINDS.node) this.#newNodes.add(number, entry) },', to: '&& false) return },', tests: GC },
  { name: 'collection: goes on past lost nodes', file: 'src/gc/collect.ts', from: 'if (brokenNodes === 0 || acceptDamage === true) return', to: 'return', tests: GC },
  { name: 'collection: a reader does not locate anew', file: 'src/repo/read-chunks.ts', from: 'if (block.isGone === true) {', to: 'if (false) {', tests: GC },
  { name: 'collection: a rebuild takes in doomed packs', file: 'src/repo/rebuild.ts', from: 'if (known === undefined && await index.isDoomed(packId)) continue', to: '', tests: GC },

  // Retention.
  { name: 'retention: protection binds nobody', file: 'src/repo/retention/locks.ts', from: 'if (holds.isProtected(row.snapshotId))', to: 'if (false)', tests: RETENTION },
  { name: 'retention: a lock ends when the wall clock says so', file: 'src/repo/retention/locks.ts', from: 'forMs - this.time.creditedSince(fromMs))', to: '0)', tests: RETENTION },
  { name: 'retention: a jump of the clock is credited', file: 'src/repo/retention/witnessed-time.ts', from: 'last.lastedMs = stopwatchMs - this.#beganAt.stopwatchMs', to: 'last.lastedMs = Math.max(0, wallMs - this.#beganAt.wallMs)', tests: RETENTION },
  { name: 'retention: a lock may be shortened', file: 'src/repo/retention/manage-retention.ts', from: 'if (leftMs > forMs)', to: 'if (false)', tests: RETENTION },
  { name: 'retention: the repository lock may be shortened', file: 'src/repo/retention/manage-retention.ts', from: 'if (lockMs < settings.lockMs)', to: 'if (false)', tests: RETENTION },
  { name: 'retention: rules drop the newest of a source', file: 'src/repo/retention/plan.ts', from: "...(newest.has(verdict.snapshot) ? ['newest of its source'] : []), ", to: '', tests: RETENTION },
  { name: 'retention: the client tells the time', file: 'src/repo/snapshot-format.ts', from: 'const { source, receivedAtMs, tags, sessionId } = parseRecord(signed)', to: 'const { source, startedAtMs: receivedAtMs, tags, sessionId } = parseRecord(signed)', tests: RETENTION },
  { name: 'retention: settings are believed unauthenticated', file: 'src/repo/retention/settings-format.ts', from: '|| !timingSafeEqual(given, expected)) return undefined', to: ') return undefined', tests: RETENTION },
  { name: 'retention: unknown settings are taken for none', file: 'src/repo/retention/retention.ts', from: 'if (local === undefined) return error', to: 'if (false) return error', tests: RETENTION },

  // Bounds.
  { name: 'replication: any signer will do', file: 'src/repo/replica/receive-snapshot.ts', from: 'if (verifyKey !== own) await parts.origins.require({ repositoryId: record.repositoryId, verifyKey })\n  else if', to: 'if', tests: REPLICATION },
  { name: 'replication: a key signs for any repository', file: 'src/repo/replica/origins.ts', from: 'if (found?.repositoryId !== repositoryId)', to: 'if (found === undefined)', tests: REPLICATION },
  { name: 'replication: what any node lists is inherited', file: 'src/repo/replica/hold-refs.ts', from: 'state === REF_STATES.inherited ?', to: 'state >= REF_STATES.unpinned ?', tests: REPLICATION },
  { name: 'replication: two records of one push', file: 'src/repo/replica/receive-snapshot.ts', from: 'if (ofSession !== undefined && ofSession.source === record.source)', to: 'if (false)', tests: REPLICATION },
  { name: 'replication: a receiving session commits', file: 'src/repo/commit-snapshot.ts', from: "if (session.mode === 'replicate')", to: 'if (false)', tests: REPLICATION },
  { name: 'replication: a peer need not prove itself', file: 'src/replication/http-side.ts', from: '!isProvenPeer(challenge, reply, this.verifyKey)', to: 'false', tests: ['e2e/replication-regions.test.ts'] },
  { name: 'replication: what was dropped here is brought again', file: 'src/replication/run-replication.ts', from: '&& !brought.has(id))\n', to: ')\n', tests: REPLICATION },
  { name: 'replication: everything is mirrored away', file: 'src/replication/run-replication.ts', from: 'if (listed.size === 0) {', to: 'if (false) {', tests: REPLICATION },
  { name: 'bound: what a body unfolds to', file: 'src/core/frames.ts', from: 'if (rawTotal > LIMITS.bodyBytesMax)', to: 'if (false)', tests: PROTOCOL },
  { name: 'bound: depth of a tree', file: 'src/repo/verify-tree.ts', from: 'stack.length >= LIMITS.treeDepthMax || ', to: '', tests: TREES },
  { name: 'bound: a repeated id is framed at once', file: 'src/repo/read-chunks.ts', from: 'bytes + rawBytes > LIMITS.chunkBytesMax', to: 'false', tests: PROTOCOL },

  // The order of effects (docs/durability.md W1–W6).
  { name: 'order: a pack is renamed before it is fsynced', file: 'src/repo/pack-writer.ts', from: '    await effects.fsync(this.#fd)\n    await effects.close(this.#fd)\n    this.#fd = -1\n    await effects.rename(this.#path, file)\n',
    to: '    await effects.rename(this.#path, file)\n    await effects.fsync(this.#fd)\n    await effects.close(this.#fd)\n    this.#fd = -1\n', tests: CRASH },
  { name: 'order: a pack is not fsynced', file: 'src/repo/pack-writer.ts', from: '    await effects.fsync(this.#fd)\n', to: '', tests: CRASH },
  { name: 'order: the name of a sealed pack is not made durable', file: 'src/repo/pack-writer.ts', from: '    await effects.fsyncDirectory(directory)\n', to: '', tests: CRASH },
  { name: 'order: a pack is in the index before its rename', file: 'src/repo/pack-writer.ts', from: 'await effects.rename(this.#path, file)\n    await effects.fsyncDirectory(directory)',
    to: 'void effects.rename(this.#path, file).then(() => effects.fsyncDirectory(directory)).catch(() => undefined)', tests: CRASH },
  { name: 'order: a commit does not wait for the target', file: 'src/repo/commit-snapshot.ts', from: 'await waitForTargets(parts, signal) // W3', to: 'true // W3', tests: [...CRASH, 'repo/commit-order.test.ts'] },
  { name: 'order: a snapshot is written before its tree is verified', file: 'src/repo/commit-snapshot.ts', from: 'await verifyPushedTree(parts, sessionId, root, signal) // W4',
    to: '// W4', tests: PROTOCOL },
  { name: 'order: a snapshot is in the index before it is on the target', file: 'src/repo/commit-snapshot.ts',
    from: '    const isPut = areStored && await putOnTargets(parts, signed.snapshotId, object, signal) // W5\n    if (!isPut) await parts.spooledSnapshots.add(signed.snapshotId, object)',
    to: '    let isPut = true\n    if (false) await parts.spooledSnapshots.add(signed.snapshotId, object)',
    and: [['    return { isPut, row }\n', '    isPut = areStored && await putOnTargets(parts, signed.snapshotId, object, signal)\n    if (!isPut) await parts.spooledSnapshots.add(signed.snapshotId, object)\n    return { isPut, row }\n']],
    tests: [...CRASH, 'repo/commit-order.test.ts'] },
  { name: 'order: a pack counts as stored before it is', file: 'src/repo/pack-uploads.ts',
    from: '      await this.#put(target, row, file)\n      if (!this.#packs.has(row.packNumber)) return // withdrawn meanwhile\n      await this.#placed(pack, await this.deps.targets.place(row.packNumber, { add: target.bit }))\n',
    to: '      await this.#placed(pack, await this.deps.targets.place(row.packNumber, { add: target.bit }))\n      await this.#put(target, row, file)\n', tests: [...CRASH, 'repo/commit-order.test.ts'] },
  { name: 'order: an object is published before it is fsynced', file: 'src/store/file-store.ts', from: '        await this.effects.fsync(fd)\n      } finally { await this.effects.close(fd) }\n      call',
    to: '      } finally { await this.effects.close(fd) }\n      call', tests: ['store/file-store.test.ts'] },
  { name: 'order: the name of an object is not made durable', file: 'src/store/file-store.ts', from: '      await this.effects.fsyncDirectory(dirname(path))\n    })\n  }\n\n  async getRange',
    to: '    })\n  }\n\n  async getRange', tests: ['store/file-store.test.ts'] },
  { name: 'order: recovery believes a spooled pack its name', file: 'src/repo/recover.ts', from: 'if (await digestFile(file) !== packId)', to: 'if (false)', tests: DAMAGE },

  // What a client believes.
  { name: 'client: a chunk is believed its id', file: 'client/read-chunks.ts', from: '.compare(ids, at, at + CHUNK_ID_BYTES, 0, CHUNK_ID_BYTES) === 0', to: '.byteLength > 0', tests: RESTORE },
  // Two guards, either of which suffices unless a racing process hits the moment between them: both must go.
  { name: 'client: a symlink in the way of a directory is followed', file: 'client/restore/target-directory.ts',
    from: 'constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW', to: 'constants.O_RDONLY | constants.O_DIRECTORY',
    and: [['closeSync(openSync(path, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW))', 'closeSync(openSync(path, O_PATH | constants.O_DIRECTORY))']],
    tests: [...RESTORE, ...TREES] },
  { name: 'client: names out of order', file: 'client/tree/directory-node.ts', from: 'if (last !== undefined && last.compare(entry.name) >= 0)', to: 'if (false)', tests: TREES },
  { name: 'client: leaves that overlap', file: 'client/tree/directory-reader.ts', from: 'this.#lastName.compare(first) >= 0)', to: 'false)', tests: TREES },
  { name: 'client: names that climb', file: 'client/tree/entry-codec.ts', from: 'if (name[0] === 0x2e && (bytes === 1 || (bytes === 2 && name[1] === 0x2e))) return false', to: '', tests: TREES },
  { name: 'client: names with a slash', file: 'client/tree/entry-codec.ts', from: 'if (name[i] === 0x2f || name[i] === 0) return false', to: 'if (name[i] === 0) return false', tests: TREES },
]
