/* Collecting beside damage: bytes rot, the scrub marks them, clients bring them again without knowing, a spare copy is made live (docs/gc.md, "Damage").
 *
 * A snapshot's tree is T -> N -> C: two nodes and one data chunk. Places are numbers of packs of the chunk: 1 is where it was; C has a spare copy in
 * pack 2 that lost to the first. A pack later than G2 is out of the collection's scope. What is claimed: the only chunks that a snapshot ever lacks are
 * those that damage took, and they are known as lost; so a snapshot that seems whole is whole, and is safe to push against unread.
 */
#define T 0
#define N 1
#define C 2
#define SPARE 2
#define RUNS 2

byte live[3], next[3], rotten[3]; /* rotten: the pack of the chunk whose bytes are bad */
bool lost[3];
byte pinned[3], held[3];          /* by the session that reads everything; by HELD */
bool isOpen;
bool listed[3];
byte epoch, collecting;
bool inherited, isHeld;           /* T, by the session with a parent; by HELD */
bool isSpareUsed;

#define NOTHING_LOST (!lost[T] && !lost[N] && !lost[C])
#define ACCOUNTED(c) (live[c] != 0 || lost[c])
#define TREE_ACCOUNTED (ACCOUNTED(T) && ACCOUNTED(N) && ACCOUNTED(C))

inline check() { assert(!listed[0] && !listed[1] && !listed[2] && !inherited || TREE_ACCOUNTED) }
inline endCollection() { collecting = 0; isHeld = false; held[T] = 0; held[N] = 0; held[C] = 0 }

/* ---- damage ---- */

proctype Rot() {
  if
  :: atomic { live[N] != 0 -> rotten[N] = live[N] }
  :: atomic { live[C] != 0 -> rotten[C] = live[C] }
  :: true
  fi
}

/* Reads, then marks: what lies elsewhere by then is passed over. */
inline scrub(c) {
  found = rotten[c];
  atomic {
    if
    :: found != 0 && live[c] == found -> live[c] = 0; lost[c] = true; check()
    :: else
    fi
  }
}
proctype Scrub() {
  byte found;
  scrub(N);
  scrub(C);
  atomic {
    if
    :: lost[C] && !isSpareUsed ->
      live[C] = SPARE; lost[C] = false; isSpareUsed = true;
#ifndef REVIVE_KEEPS_RUN
      endCollection();
#endif
      check()
    :: else
    fi
  }
}

/* ---- clients ---- */

inline ask(c) {
  atomic {
    if
    :: live[c] != 0 -> pinned[c] = live[c]
    :: else
    fi
  }
  atomic {
    if
    :: live[c] == 0 -> live[c] = next[c]; next[c]++; lost[c] = false; pinned[c] = live[c]; check() /* a new pack heals */
    :: live[c] != 0 -> pinned[c] = live[c]
    fi
  }
  if
  :: skip
  :: goto gone
  fi
}
inline close() { pinned[T] = 0; pinned[N] = 0; pinned[C] = 0; isOpen = false }

/* Without a parent: reads everything, sends what is missing, in any order, and may stop at any point. */
proctype PushWhole() {
  byte last;
  isOpen = true;
  if
  :: true -> ask(C); ask(N); ask(T)
  :: true -> ask(T); ask(N); ask(C)
  :: true -> ask(N); goto gone
  fi;
  atomic { /* what was lost meanwhile is refused: COMMIT_INCOMPLETE */
    if
    :: pinned[T] == live[T] && pinned[N] == live[N] && pinned[C] == live[C] && live[T] != 0 && live[N] != 0 && live[C] != 0 ->
      listed[1] = true;
      if :: collecting != 0 -> held[T] = pinned[T]; held[N] = pinned[N]; held[C] = pinned[C] :: else fi
    :: else
    fi;
    close();
    check()
  }
gone:
  atomic { close() }
}

/* With a parent: inherits the root, reads nothing, commits it. */
proctype PushUnread() {
  atomic {
#ifdef PARENT_IN_SPITE_OF_DAMAGE
    if :: listed[0] && live[T] != 0 -> skip :: else -> goto without fi;
#else
    if :: listed[0] && live[T] != 0 && NOTHING_LOST -> skip :: else -> goto without fi;
#endif
    assert(live[T] != 0 && live[N] != 0 && live[C] != 0); /* whole, but for damage nobody knows of yet */
    inherited = true;
    check()
  }
  atomic {
    inherited = false;
    if
    :: listed[2] = true; isHeld = isHeld || collecting != 0
    :: skip
    fi;
    check()
  }
without: skip
}

proctype Forget() { atomic { if :: listed[0] = false :: skip fi } }

/* ---- the collection ---- */

#define IN_SCOPE(c) (live[c] != 0 && live[c] < scope[c])
#define NEEDED(c) (marked[c] == live[c] || c == T && (inherited || isHeld) || pinned[c] == live[c] || held[c] == live[c])

inline sweep(c) {
  atomic {
    if
    :: collecting != mine -> goto over
    :: collecting == mine && IN_SCOPE(c) && !NEEDED(c) -> live[c] = 0; check()
    :: else
    fi
  }
}
/* The references of node c become known, or the run is broken: what lies below is not known. */
inline expand(c) {
  if
  :: live[c] != 0 && rotten[c] != live[c] -> isExpanded = true
#ifdef SKIP_NEW_PACKS
  :: live[c] >= scope[c] -> isExpanded = false
#endif
  :: else -> isExpanded = false; isBroken = isBroken || mayBreak
  fi;
#ifdef SKIP_NEW_PACKS
  if :: live[c] >= scope[c] -> isExpanded = false :: else fi
#endif
}

proctype Collect() {
  byte marked[3], scope[3];
  byte mine, run_;
  bool isBroken, isExpanded, mayBreak;
  do
  :: run_ < RUNS ->
    atomic { epoch++; endCollection(); collecting = epoch; mine = epoch }
    atomic { scope[T] = next[T]; scope[N] = next[N]; scope[C] = next[C] }
    atomic {
      isExpanded = listed[0] || listed[1] || listed[2];
      mayBreak = isExpanded;
#ifndef LOSS_BELOW_SESSIONS_IGNORED
      mayBreak = mayBreak || inherited || isHeld;
#endif
      isExpanded = isExpanded || inherited || isHeld;
#ifdef EXPAND_PINNED
      isExpanded = isExpanded || pinned[T] != 0;
      mayBreak = isExpanded;
#endif
      if :: isExpanded -> marked[T] = live[T]; expand(T) :: else fi
    }
    atomic { if :: isExpanded -> if :: live[N] != 0 -> marked[N] = live[N] :: else fi; expand(N) :: else fi }
    atomic { if :: isExpanded -> if :: live[C] != 0 -> marked[C] = live[C] :: else fi :: else fi; isExpanded = false }
#ifndef MARK_PAST_DAMAGE
    if :: isBroken -> goto over :: else fi;
#endif
    sweep(T); sweep(N); sweep(C);
over:
    atomic {
      assert(!isBroken || rotten[N] != 0); /* nothing but damage stops a collection */
      if :: collecting == mine -> endCollection() :: else fi;
      marked[T] = 0; marked[N] = 0; marked[C] = 0; isBroken = false; isExpanded = false; mayBreak = false; run_++
    }
  :: else -> break
  od
}

init {
  atomic {
    live[T] = 1; live[N] = 1; live[C] = 1;
    next[T] = 2; next[N] = 2; next[C] = 3;
    listed[0] = true;
    run Rot(); run Scrub(); run PushWhole(); run PushUnread(); run Forget(); run Collect()
  }
}
