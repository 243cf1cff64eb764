/* Who needs what: marks, pins, epochs, commits, forgotten snapshots (docs/gc.md G1-G6, G9).
 *
 * Every atomic step is one transaction of the index, and between any two steps a process may be suspended for any length. A chunk lives in its
 * original pack (R alone; X and D together) or, when it came again or was copied, in a later pack of its own; packs later than G2 are out of
 * the collection's scope. Two configurations, each searched completely:
 *   (default)   one collection, two push sessions, one who forgets snapshots
 *   -DRESTARTS  two collections (marking is one step, and so is dropping the later packs), one push session, forgetting, and a restart, clean or not. The restart does not end a
 *               collection here: it goes on with the marks of before, as if it had slept. Only the epoch stops it.
 * Bytes, targets and readers are in gc-objects.pml, damage in gc-damage.pml. Each NO_... switch takes one check away: Spin must find what it is for.
 */
#define R 0 /* a root, and a node of others: refers to X */
#define X 1
#define D 2 /* no snapshot refers to it at the start, but its pack has it */
#define Q 3 /* a new root: refers to R and D */
#define CHUNKS 4
#define ORIGINAL 1
#define NONE 7

#ifdef RESTARTS
#define SESSIONS 1
#else
#define SESSIONS 2
#endif
#define HELD SESSIONS

#define CLOSED 0
#define OPENING 1
#define OPEN 2

typedef Pins {
  byte at[CHUNKS]; /* the pack of the chunk in which it is pinned; 0 = it is not */
  byte inherited   /* bit a chunk */
}

byte live[CHUNKS]; /* which pack of the chunk it lives in; 0 = missing */
byte next[CHUNKS]; /* the chunk's next pack: numbers are never used twice */
bool listed[3];
byte root[3];
byte session[SESSIONS];
Pins pins[SESSIONS + 1];
byte epoch, collecting;

#define R_WHOLE (live[R] != 0 && live[X] != 0)
#define Q_WHOLE (live[Q] != 0 && live[D] != 0 && R_WHOLE)
#define HAS(mask, c) (((mask) >> (c)) & 1)
#define PINNED(s, c) (pins[s].at[c] != 0 && pins[s].at[c] == live[c])
#ifdef NO_PIN_CHECK
#define PINNED_BY_ANY(c) false
#elif SESSIONS == 1
#define PINNED_BY_ANY(c) (PINNED(0, c) || PINNED(HELD, c))
#else
#define PINNED_BY_ANY(c) (PINNED(0, c) || PINNED(1, c) || PINNED(HELD, c))
#endif

#define SNAPSHOT_WHOLE(k) (!listed[k] || root[k] == R && R_WHOLE || root[k] == Q && Q_WHOLE)
#define PIN_TRUE(s, c) (pins[s].at[c] == 0 || PINNED(s, c))
#define SESSION_TRUE(s) (session[s] != OPEN || PIN_TRUE(s, R) && PIN_TRUE(s, X) && PIN_TRUE(s, D) && PIN_TRUE(s, Q) \
  && (!HAS(pins[s].inherited, R) || R_WHOLE) && (!HAS(pins[s].inherited, Q) || Q_WHOLE))

inline check() {
  assert(SNAPSHOT_WHOLE(0) && SNAPSHOT_WHOLE(1) && SNAPSHOT_WHOLE(2)); /* every listed snapshot has all its chunks */
  assert(SESSION_TRUE(0)); /* what an open session was told is present is there; what it may read or take over unread is whole, forgotten or not */
#if SESSIONS == 2
  assert(SESSION_TRUE(1))
#endif
}

inline dropPins(s) {
  pins[s].at[R] = 0; pins[s].at[X] = 0; pins[s].at[D] = 0; pins[s].at[Q] = 0;
  pins[s].inherited = 0
}
inline give(s, c) { if :: pins[s].at[c] != 0 -> pins[HELD].at[c] = pins[s].at[c] :: else fi }
inline endCollection() { collecting = 0; dropPins(HELD) }

/* ---- clients ---- */

inline ask(s, c) { /* look and pin in one transaction; who is told "missing" sends it */
  atomic {
    if
    :: session[s] != OPEN -> goto ended
    :: session[s] == OPEN && live[c] != 0 -> pins[s].at[c] = live[c]
    :: session[s] == OPEN && live[c] == 0 -> skip
    fi
  }
  if
  :: pins[s].at[c] == 0 && session[s] == OPEN ->
    atomic {
      if
      :: session[s] != OPEN -> goto ended
      :: session[s] == OPEN ->
        if
        :: live[c] == 0 -> live[c] = next[c]; next[c]++
        :: else /* somebody else brought it */
        fi;
        pins[s].at[c] = live[c]
      fi
    }
  :: else
  fi
}

proctype Push(byte s) {
  byte parent = NONE;
  byte tree = Q;

  /* Opening looks up the parent, writes the session, inherits the root, and looks again. */
  if
  :: skip
  :: atomic { listed[0] -> parent = 0 }
  :: atomic { listed[1] && s == 1 -> parent = 1 }
  fi;
  atomic {
    session[s] = OPENING;
    if
    :: parent == NONE -> session[s] = OPEN; goto opened
    :: else
    fi
  }
  atomic {
    if
    :: session[s] != OPENING -> goto ended
    :: session[s] == OPENING && live[root[parent]] == 0 -> parent = NONE; session[s] = OPEN; goto opened
    :: session[s] == OPENING && live[root[parent]] != 0 ->
      pins[s].at[root[parent]] = live[root[parent]];
      pins[s].inherited = 1 << root[parent]
    fi
  }
  atomic {
    if
    :: session[s] != OPENING -> goto ended
#ifdef NO_LOOK_AGAIN
    :: session[s] == OPENING -> session[s] = OPEN
#else
    :: session[s] == OPENING && !listed[parent] -> dropPins(s); session[s] = CLOSED; goto ended
    :: session[s] == OPENING && listed[parent] -> session[s] = OPEN
#endif
    fi
  }
opened:
  if
  :: parent != NONE -> tree = root[parent] /* nothing changed */
  :: tree = Q
  fi;
  if
  :: tree == Q && !HAS(pins[s].inherited, Q) ->
    ask(s, D);
    if
    :: !HAS(pins[s].inherited, R) -> ask(s, X); ask(s, R)
    :: else
    fi;
    ask(s, Q)
  :: else
  fi;
  atomic {
    if
    :: session[s] == OPEN -> /* commit: what was inherited is not walked, everything else is pinned */
      assert(HAS(pins[s].inherited, tree) || PINNED(s, Q) && PINNED(s, D) && (HAS(pins[s].inherited, R) || PINNED(s, R) && PINNED(s, X)));
      listed[s + 1] = true;
      root[s + 1] = tree;
#ifndef NO_HELD
      if
      :: collecting != 0 ->
        give(s, R); give(s, X); give(s, D); give(s, Q);
        pins[HELD].inherited = pins[HELD].inherited | pins[s].inherited
      :: else
      fi;
#endif
      dropPins(s);
      session[s] = CLOSED;
      check()
    :: dropPins(s); session[s] = CLOSED /* abandoned, or closed because it was idle */
    fi
  }
ended: skip
}

/* ---- the server ---- */

proctype Forget() {
  byte k;
  do
  :: atomic {
      listed[k] ->
#ifdef FORGET_ONLY_WHILE_COLLECTING
      if :: collecting != 0 :: else -> goto ended fi;
#endif
      listed[k] = false;
#ifndef NO_HELD_ROOT
      if
      :: collecting != 0 && live[root[k]] != 0 ->
        pins[HELD].at[root[k]] = live[root[k]];
        pins[HELD].inherited = pins[HELD].inherited | (1 << root[k])
      :: else
      fi
#endif
    }
  :: k == 0 && SESSIONS == 2 -> k = 1 /* a second session can have the first one's as its parent */
  :: break
  od;
#ifdef FORGET_ONLY_WHILE_COLLECTING
ended: skip
#endif
}

proctype Restart() {
  atomic {
    endCollection();
    if
    :: skip /* cleanly: sessions stay */
    :: dropPins(0); session[0] = CLOSED
    fi
  }
}

/* ---- the collection ---- */

/* What a snapshot or an inherited pin refers to is there, unless this collection is over, or a session had not looked again yet (then it ends, too). */
inline follow(c) {
  if
  :: live[c] != 0 -> marked[c] = live[c]; expand = expand | (1 << c)
  :: else -> assert(collecting != mine || sawOpening); goto over
  fi
}
inline reachSnapshot(k) { atomic { if :: listed[k] -> follow(root[k]) :: else fi } }
#define NOTE_OPENING(s) if :: s != HELD && session[s % SESSIONS] == OPENING -> sawOpening = true :: else fi
inline reachPin(s, c) {
  if
  :: pins[s].at[c] != 0 ->
    marked[c] = pins[s].at[c];
#ifndef NO_EXPAND_INHERITED
    if :: HAS(pins[s].inherited, c) -> expand = expand | (1 << c) :: else fi
#endif
  :: else
  fi
}
inline reachPins(s) { atomic { NOTE_OPENING(s); reachPin(s, R); reachPin(s, X); reachPin(s, D); reachPin(s, Q) } }

inline mark() {
  atomic { scope[R] = next[R]; scope[X] = next[X]; scope[D] = next[D]; scope[Q] = next[Q] }             /* G2 */
#if SESSIONS == 2
  reachSnapshot(2);                                                                                     /* G3 */
#endif
  reachSnapshot(1); reachSnapshot(0);
  reachPins(0);
#if SESSIONS == 2
  reachPins(1);
#endif
  reachPins(HELD);
  atomic { if :: HAS(expand, Q) -> follow(R); follow(D) :: else fi }
  atomic { if :: HAS(expand, R) -> follow(X) :: else fi }
}

#define IN_SCOPE(c) (live[c] != 0 && live[c] < scope[c])
#define NEEDED(c) (marked[c] == live[c] || PINNED_BY_ANY(c))
#ifdef NO_EPOCH_CHECK
#define STALE false
#else
#define STALE (collecting != mine)
#endif

/* The one chunk of a later pack, or R in its own: the pack is dropped, or stays. */
inline sweep(c) {
  atomic {
    if
    :: STALE -> goto over
    :: !(STALE) && IN_SCOPE(c) && !NEEDED(c) -> live[c] = 0; check()
    :: else
    fi
  }
}
inline followPin(s, c) { if :: pins[s].at[c] == ORIGINAL -> pins[s].at[c] = copy[c] :: else fi }
inline leave(c) {
  if
  :: live[c] == ORIGINAL && copy[c] != 0 ->
    live[c] = copy[c];
    followPin(0, c);
#if SESSIONS == 2
    followPin(1, c);
#endif
    followPin(HELD, c)
  :: live[c] == ORIGINAL && copy[c] == 0 -> live[c] = 0
  :: else
  fi
}

inline sweepLater() {
  if :: live[X] > ORIGINAL -> sweep(X) :: else fi;
  if :: live[D] > ORIGINAL -> sweep(D) :: else fi;
  sweep(Q)
}

proctype Collect() {
  byte marked[CHUNKS];
  byte scope[CHUNKS];
  byte copy[CHUNKS];
  byte mine, expand;
  bool sawOpening;

  atomic { epoch++; endCollection(); collecting = epoch; mine = epoch }                                 /* G1 */
#ifdef RESTARTS
  atomic { mark() }
#else
  mark();
#endif
  sweep(R);                                                                                             /* G5 */
  atomic { /* what is needed of the pack of X and D is copied; without anything needed it is dropped */ /* G4, G6 */
    if :: live[X] == ORIGINAL && NEEDED(X) -> copy[X] = next[X]; next[X]++ :: else fi;
    if :: live[D] == ORIGINAL && NEEDED(D) -> copy[D] = next[D]; next[D]++ :: else fi
  }
  atomic {                                                                                              /* G5, G6 */
    if
    :: STALE -> goto over
    :: !(STALE) && (live[X] != ORIGINAL || copy[X] != 0 || !NEEDED(X)) && (live[D] != ORIGINAL || copy[D] != 0 || !NEEDED(D)) -> leave(X); leave(D); check()
    :: else /* needed by someone who came after the copying: the pack stays */
    fi
  }
#ifdef RESTARTS
  atomic { sweepLater() }
#else
  sweepLater();
#endif
over:
  atomic {
    if :: collecting == mine -> endCollection() :: else fi;                                             /* G9 */
    marked[R] = 0; marked[X] = 0; marked[D] = 0; marked[Q] = 0;
    scope[R] = 0; scope[X] = 0; scope[D] = 0; scope[Q] = 0;
    copy[X] = 0; copy[D] = 0; expand = 0; mine = 0; sawOpening = false
  }
}

init {
  atomic {
    live[R] = ORIGINAL; live[X] = ORIGINAL; live[D] = ORIGINAL;
    next[R] = 2; next[X] = 2; next[D] = 2; next[Q] = 2;
    listed[0] = true; root[0] = R; root[1] = NONE; root[2] = NONE;
    run Push(0); run Forget(); run Collect();
#ifdef RESTARTS
    run Collect(); run Restart()
#else
    run Push(1)
#endif
  }
}
