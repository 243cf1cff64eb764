/* Where the bytes are: copies, uploads, catch-up, doomed packs, deletions on two targets of which one may be away, readers, a rebuild beside them,
 * and a crash at any step (docs/gc.md G5-G8).
 *
 * What is needed is known here (that is gc-mark.pml): X belongs to a snapshot for ever, E to none, D to whoever pins or commits it.
 * Packs: 1 = X and D, on target A, catch-up brings it to B; 2 = E, on A, its upload to B still waits in the spool; 3 and 5 = copies of X made by the
 * first and second run of the collection; 4 = D sent again.
 * The index and sealed spool files survive a crash; open packs, claims, sessions and whatever a process had in mind do not. Three configurations, each
 * searched completely:
 *   (default)   two runs of the collection, uploads to both targets, deletions on both, one of which is away for a while
 *   -DCLIENTS   one run, beside a push, a restore and a rebuild
 *   -DCATCH_UP  one run, beside copying from one target to the other
 */
#define A 1
#define B 2
#define BOTH 3
#define PACKS 6
#if defined(CLIENTS) || defined(CATCH_UP)
#define RUNS 1
#define EVERYWHERE A
#else
#define RUNS 2
#define EVERYWHERE BOTH
#endif

#define NO_FILE 0
#define OPEN 1
#define SEALED 2

bool inIndex[PACKS];
bool stored[PACKS];
byte file[PACKS];     /* in the spool */
byte objects[PACKS];  /* bit a target */
byte doomed[PACKS];   /* targets that may still have it; 0 = no row */
byte copying[PACKS];  /* claims and waiting uploads: in memory */
bool removing[PACKS];
byte liveX = 1, liveD = 1, liveE = 2;
bool isPinned, isSessionOpen, isCommitted;
bool isUp = true; /* target B */
byte boot;

#define NEEDS_D (isPinned || isCommitted)
#define HAS_BYTES(p) (objects[p] != 0 || file[p] != NO_FILE)
#define LIVES_IN(p) (liveX == p || liveD == p || liveE == p)

inline check() {
  assert(liveX != 0 && objects[liveX] != 0);                             /* a snapshot that was acknowledged is on a target */
  assert(!isCommitted || liveD != 0 && objects[liveD] != 0);
  assert(!isPinned || liveD != 0);                                       /* present stays present */
  assert(liveD == 0 || HAS_BYTES(liveD) && inIndex[liveD]);              /* the index does not lie to those who ask */
  assert(liveE == 0 || HAS_BYTES(liveE) && inIndex[liveE])
}

/* One transaction: chunks that live elsewhere stay there. */
inline addPack(p) {
  inIndex[p] = true;
  if :: p == 1 && liveX == 0 -> liveX = 1 :: (p == 3 || p == 5) && liveX == 0 -> liveX = p :: else fi;
  if :: (p == 1 || p == 4) && liveD == 0 -> liveD = p :: else fi;
  if :: p == 2 && liveE == 0 -> liveE = 2 :: else fi
}

/* ---- uploads, catch-up ---- */

#define WANTS(p) (inIndex[p] && file[p] == SEALED && (objects[p] & target) == 0 && (target == A || isUp) && !removing[p])
inline upload(p) {
  atomic { WANTS(p) -> mine = boot; copying[p]++ }
  atomic { if :: mine == boot -> objects[p] = objects[p] | target :: else fi }
  atomic {
    if
    :: mine == boot ->
      copying[p]--;
      if :: inIndex[p] -> stored[p] = true :: else fi;
      if :: (objects[p] & EVERYWHERE) == EVERYWHERE -> file[p] = NO_FILE :: else fi
    :: else
    fi;
    mine = 0
  }
}
proctype Lane(byte target) {
  byte mine;
end:
  do
  :: upload(2)
  :: upload(3)
  :: upload(4)
  :: upload(5)
  od
}

proctype CatchUp() {
  byte mine;
  atomic {
    mine = boot;
    if :: removing[1] -> goto ended :: else -> copying[1]++ fi;
    if :: inIndex[1] :: else -> copying[1] = 0; goto ended fi
  }
  atomic { isUp; if :: mine == boot -> objects[1] = objects[1] | B :: else fi }
  atomic { if :: mine == boot && copying[1] != 0 -> copying[1]-- :: else fi }
ended: skip
}

/* ---- clients ---- */

proctype Push() {
  byte mine;
  mine = boot;
  isSessionOpen = true;
  atomic { if :: isSessionOpen && liveD != 0 -> isPinned = true :: else fi; check() }
  if
  :: !isPinned ->
    atomic { if :: isSessionOpen && mine == boot && liveD == 0 -> file[4] = OPEN :: else -> goto over fi }
    atomic { if :: isSessionOpen && mine == boot -> file[4] = SEALED :: else -> goto over fi }
    atomic { if :: isSessionOpen && mine == boot -> addPack(4); isPinned = true; check() :: else -> goto over fi }
    (stored[4] || !isSessionOpen)
  :: else
  fi;
  atomic { if :: isSessionOpen && isPinned -> isCommitted = true :: else fi; check() }
over:
  atomic { if :: mine == boot -> isSessionOpen = false; isPinned = false :: else fi }
}

/* Reads X twice, planned and read in two steps. A target that is away is waited for. */
proctype Read() {
  byte planned, times;
  do
  :: times < 2 ->
    planned = liveX;
    if
    :: atomic { (objects[planned] & A) != 0 || (objects[planned] & B) != 0 && isUp || file[planned] == SEALED -> times++ }
    :: atomic { objects[planned] == 0 && file[planned] != SEALED ->
#ifdef NO_READER_FENCE
        assert(false)
#else
        assert(!inIndex[planned]) /* the pack is gone: locate anew */
#endif
      }
    fi
  :: else -> break
  od
}

/* ---- the collection ---- */

/* Somebody is bringing the pack to a target, or will. */
#ifdef NO_CLAIM
#define BUSY(p) false
#else
#define BUSY(p) (copying[p] != 0 || file[p] != NO_FILE)
#endif

#ifdef NO_DOOMED_JOURNAL
#define DOOM(p) recalled = p
#else
#define DOOM(p) doomed[p] = BOTH
#endif
#ifdef DELETE_FIRST
#define DELETE_EARLY(p) objects[p] = 0; check()
#else
#define DELETE_EARLY(p) skip
#endif

proctype Collect() {
  byte mine, copy, recalled, run_;
  do
  :: run_ < RUNS ->
    mine = boot;
    copy = 3 + 2 * run_;
    recalled = 0;

    /* G5: pack 2 is garbage, and so is a copy that a crash kept from being switched to. */
    atomic { if :: mine == boot && inIndex[2] && !BUSY(2) -> removing[2] = true :: else -> goto kept fi }
    DELETE_EARLY(2);
    atomic { if :: mine == boot -> inIndex[2] = false; liveE = 0; DOOM(2); removing[2] = false; check() :: else -> goto died fi }
#ifdef NO_DOOMED_JOURNAL
    atomic { if :: mine == boot -> objects[2] = 0 :: else -> goto died fi }
#endif
kept:
    atomic {
      if
      :: mine == boot && run_ == 1 && inIndex[3] && liveX != 3 && !BUSY(3) -> inIndex[3] = false; DOOM(3); check()
      :: else
      fi
    }
#ifdef NO_DOOMED_JOURNAL
    atomic { if :: mine == boot && recalled == 3 -> objects[3] = 0; file[3] = NO_FILE :: else fi }
#endif
    /* G6: pack 1 is half alive. */
    atomic { if :: mine == boot && liveX == 1 -> file[copy] = OPEN :: else -> goto died fi }
    atomic { if :: mine == boot -> file[copy] = SEALED :: else -> goto died fi }
    atomic { if :: mine == boot -> addPack(copy); check() :: else -> goto died fi }
#ifndef NO_COPY_DURABLE
    (stored[copy] || mine != boot);
    atomic { if :: mine == boot -> assert(objects[copy] != 0) :: else -> goto died fi } /* read back */
#endif
    atomic { if :: mine == boot && inIndex[1] && !BUSY(1) -> removing[1] = true :: else -> goto died fi }
    DELETE_EARLY(1);
    atomic {
      if
      :: mine != boot -> goto died
      :: mine == boot && liveD == 1 && NEEDS_D -> removing[1] = false /* pinned since: the pack stays */
      :: mine == boot && !(liveD == 1 && NEEDS_D) ->
        if :: liveX == 1 -> liveX = copy :: else fi;
        if :: liveD == 1 -> liveD = 0 :: else fi;
        inIndex[1] = false; DOOM(1); removing[1] = false; check()
      fi
    }
#ifdef NO_DOOMED_JOURNAL
    atomic { if :: mine == boot && recalled == 1 -> objects[1] = 0 :: else -> goto died fi }
#endif
died: run_++; mine = 0; copy = 0; recalled = 0
  :: else -> break
  od
}

/* G8: from the rows alone, so that it goes on after any crash. */
inline delete(p) {
  atomic { (doomed[p] & targets) != 0 && (targets == A || isUp) -> objects[p] = objects[p] & ~targets; check() }
  atomic { doomed[p] = doomed[p] & ~targets }
}
proctype Delete(byte targets) {
end:
  do
  :: delete(1)
  :: delete(2)
  :: delete(3)
  od
}

/* ---- what else happens ---- */

/* Rebuild beside it all: takes in what a target lists and the index does not know. */
proctype Rebuild() {
  byte p = 1;
  bool isKnown, isGoing;
  do
  :: p < 3 ->
    if
    :: objects[p] != 0 ->
#ifdef DOOMED_ASKED_FIRST
      isGoing = doomed[p] != 0;
      isKnown = inIndex[p];
#else
      isKnown = inIndex[p];
      isGoing = doomed[p] != 0;
#endif
      if
      :: !isKnown && !isGoing ->
        atomic { if :: objects[p] != 0 -> addPack(p); stored[p] = true; check() :: else fi } /* its trailer was read */
      :: else
      fi
    :: else
    fi;
    p++
  :: else -> break
  od
}

proctype Away() { isUp = false; isUp = true }

inline recover(p) {
  if
  :: file[p] == OPEN -> file[p] = NO_FILE
  :: file[p] == SEALED && doomed[p] != 0 -> file[p] = NO_FILE
  :: file[p] == SEALED && doomed[p] == 0 && !inIndex[p] -> addPack(p)
  :: else
  fi;
  /* The upload of before may have landed without being noted: it is put again, which changes nothing. */
  if :: file[p] == SEALED && objects[p] != 0 -> stored[p] = true :: else fi;
  if :: file[p] == SEALED && (objects[p] & EVERYWHERE) == EVERYWHERE -> file[p] = NO_FILE :: else fi;
  copying[p] = 0;
  removing[p] = false
}
proctype Crash() {
  if
  :: atomic {
      boot++;
      isSessionOpen = false; isPinned = false;
      recover(1); recover(2); recover(3); recover(4); recover(5);
      check()
    }
  :: skip
  fi
}

/* When nothing moves any more no doomed row is left, nor an object or file that the index does not know, and nothing keeps one more collection from
 * every pack without a needed chunk. */
inline settled(p) {
  assert(doomed[p] == 0);
  assert(!HAS_BYTES(p) || inIndex[p]);
  assert(!inIndex[p] || liveX == p || liveD == p && NEEDS_D || copying[p] == 0 && file[p] == NO_FILE && !removing[p])
}
proctype Quiet() {
  timeout;
  assert(isUp);
  settled(1); settled(2); settled(3); settled(4); settled(5);
  check()
}

init {
  atomic {
    inIndex[1] = true; stored[1] = true; objects[1] = A;
    inIndex[2] = true; stored[2] = true; objects[2] = A;
    run Lane(A); run Collect(); run Quiet();
#ifdef CLIENTS
    run Delete(BOTH); run Push(); run Read(); run Rebuild();
#else
#ifdef CATCH_UP
    run Delete(BOTH); run CatchUp(); run Away();
#else
    file[2] = SEALED;
    run Lane(B); run Delete(A); run Delete(B); run Away();
#endif
#endif
    run Crash();
    check()
  }
}
