// What a collection, and all that runs beside it, must not leave out. The simulation must notice each within the seeds of an ordinary test run.
const SIMULATION = ['simulation/simulation.test.ts']
const WRITES = 'src/index/collection-writes.ts', MEMORY = 'src/index/memory-index.ts', LMDB = 'src/index/lmdb-index.ts', COLLECT = 'src/gc/collect.ts'

// Not here: the marks that the transaction asks for. The plan gives it no pack of which something marked has no copy; test/conformance holds the indexes to it.
export const GC_MUTATIONS = [
  // The checks of the transaction that takes a pack away, in the embedded index and in the reference.
  { name: 'gc: pins are not asked for (LMDB)', file: WRITES, from: ' || pins.some(({ bits }) => hasBit(bits.pinned, entry))', to: '' },
  { name: 'gc: pins are not asked for (memory)', file: MEMORY, from: ' || holders.some(({ pinned }) => pinned.has(at))', to: '' },
  { name: 'gc: the epoch is not asked for (LMDB)', file: WRITES, from: '  collection.require(request.epoch)\n', to: '' },
  { name: 'gc: the epoch is not asked for (memory)', file: MEMORY, from: '    if (this.#collecting !== epoch) throw staleCollection()\n', to: '' },
  { name: 'gc: a commit drops its pins while a collection runs (LMDB)', file: LMDB, from: '        if (this.#collection.collecting !== 0) this.#pins.give(key, HELD)\n', to: '' },
  { name: 'gc: a commit drops its pins while a collection runs (memory)', file: MEMORY, from: '        for (const at of pinned) this.#held.pinned.add(at)\n', to: '' },
  { name: 'gc: the root of a snapshot deleted meanwhile is not held (LMDB)', file: LMDB, from: "      if (live !== undefined) this.#pins.add(HELD, Float64Array.of(live), 'inherited')\n", to: '' },
  { name: 'gc: the root of a snapshot deleted meanwhile is not held (memory)', file: MEMORY,
    from: '    if (live !== undefined) for (const set of [this.#held.pinned, this.#held.inherited]) set.add(place(live.packNumber, live.entryNumber))\n', to: '' },
  { name: 'gc: pins do not follow a move (LMDB)', file: WRITES, from: '  followMoves(tables, pins, moved)\n', to: '' },
  { name: 'gc: pins do not follow a move (memory)', file: MEMORY, from: 'for (const set of [pinned, inherited]) if (set.has(from)) set.add(at)', to: 'for (const set of [pinned, inherited]) void set' },

  // The journal.
  { name: 'gc: a pack that goes is not written down as doomed (LMDB)', file: WRITES, from: '  collection.doom(pack, slots)\n', to: '' },
  { name: 'gc: a pack that goes is not written down as doomed (memory)', file: MEMORY,
    from: '    if (slots !== undefined) this.#doomed.set(pack.packId, { packId: pack.packId, storedBytes: pack.storedBytes, pending: slots })\n', to: '' },
  { name: 'gc: a start takes a doomed pack in from the spool', file: 'src/repo/recover.ts', from: " || await index.isDoomed(packId)", to: '' },
  { name: 'gc: a rebuild takes doomed packs in', file: 'src/repo/rebuild.ts', from: '    if (known === undefined && await index.isDoomed(packId)) continue\n', to: '' },
  { name: 'gc: a target that is away is not asked again', file: 'src/repo/doomed-packs.ts',
    from: '          failed.add(target)\n', to: '          failed.add(target)\n          await index.settleDoomed(here, target.bit)\n' },

  // The order.
  { name: 'gc: objects are deleted before their pack leaves the index', file: COLLECT, from: '      return await targets.removePack(packNumber, () => index.condemnPack(',
    to: "      for (const target of targets.readable) await target.change((store) => store.delete(`packs/${row.packId.slice(0, 2)}/${row.packId}`)).catch(() => undefined)\n" +
      '      return await targets.removePack(packNumber, () => index.condemnPack(' },
  { name: 'gc: a doomed pack is forgotten before its object is deleted', file: 'src/repo/doomed-packs.ts', from: '          const left = await this.#deleteFrom(target, here, signal)\n',
    to: '          await index.settleDoomed(here, target.bit)\n          const left = await this.#deleteFrom(target, here, signal)\n' },
  { name: 'gc: copies are believed to be stored', file: 'src/gc/repack.ts', from: "      if ((await parts.index.getPack(number))?.state !== 'stored') continue // lost while it was sealed: the old packs stay\n", to: '',
    and: [['    await this.#storeOnTargets()\n    const copies', '    const copies']] },

  // The mark.
  { name: 'gc: what sessions inherited is not marked', file: 'src/gc/mark.ts', from: '        if (hasBit(inherited, entry) && !this.marks.reach', to: '        if (false && !this.marks.reach' },
  { name: 'gc: snapshots are listed before the collection begins', file: COLLECT, from: '  const epoch = options.dryRun === true ? undefined : await index.beginCollection() // G1\n  try {\n    const marked = yield* markReachable(parts, signal) // G2, G3\n',
    to: '  const marked = yield* markReachable(parts, signal)\n  const epoch = options.dryRun === true ? undefined : await index.beginCollection() // G1\n  try {\n' },
  { name: 'gc: what could not be asked at the start is not waited for', file: COLLECT, from: '  if (pending.recovery !== undefined)\n', to: '  if (pending === undefined)\n' },
  { name: 'gc: a pack is copied and taken away at once', file: 'src/repo/pack-claims.ts', from: 'if (this.#copying.has(pack) || this.#removing.has(pack)) return undefined', to: 'if (this.#removing.has(pack)) return undefined',
    and: [['    if (this.#removing.has(pack)) return undefined\n    this.#copying', '    this.#copying']] },

  // What is deleted stays deleted.
  { name: 'gc: a deletion is forgotten before every target has heard of it', file: 'src/repo/targets/sync-metadata.ts',
    from: '  for (const one of targets.readable) if (one !== target) await one.change((store) => store.deleteMany(ids.map(snapshotKey), { signal }))\n', to: '' },
  { name: 'gc: a snapshot is deleted while a copy of it is on its way', file: 'src/repo/delete-snapshot.ts', from: 'await parts.snapshotLocks.run(id, () => deleteEverywhere(parts, row))', to: 'await deleteEverywhere(parts, row)' },
  { name: 'gc: a power cut brings a deleted snapshot back from the spool', file: 'src/repo/spooled-snapshots.ts', from: '    if (!this.#hasUnsynced) return\n', to: '    if (this.#hasUnsynced || !this.#hasUnsynced) return\n' },
].map((mutation) => ({ ...mutation, tests: SIMULATION }))
