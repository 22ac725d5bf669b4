# What the cases share: running mirrorfs, waiting on conditions, comparing the two sides.
set -E

export HOME=$SCRATCH/home
export MIRRORFS_STATE_DIR=$SCRATCH/state
export GIT_CONFIG_NOSYSTEM=1
# Not the user's: no agent, no language.
unset SSH_AUTH_SOCK SSH_ASKPASS
export LC_ALL=C
SOURCE=$SCRATCH/source
REPLICA=$SCRATCH/replica
MOUNT=$SCRATCH/mount
mkdir -p "$HOME" "$SOURCE" "$REPLICA" "$MOUNT"
# How long a condition may take to come true: generous, a slow machine is no failure.
PATIENCE=${MIRRORFS_TEST_PATIENCE:-300}
SCALE=${MIRRORFS_TEST_SCALE:-1}

fail() {
  echo "FAIL: $*"
  exit 1
}

skip() {
  echo "$*"
  exit 77
}

# A number worth keeping; the runner shows it.
figure() { echo "figure: $*"; }

need_root() { [ "$(id -u)" = 0 ] || skip "needs root"; }

mirrorfs() { "$MIRRORFS" "$@"; }

# wait_until WHAT COMMAND...: waits until the command succeeds, or fails with WHAT.
wait_until() {
  local what=$1 deadline=$((SECONDS + PATIENCE))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$what did not come true within $PATIENCE s: $*"
    sleep 0.1
  done
}

# expect CODE COMMAND...: the command ends with this code; what it says is in $SCRATCH/said.
expect() {
  local code=$1 got=0
  shift
  "$@" >"$SCRATCH/said" 2>&1 || got=$?
  sed 's/^/  said: /' "$SCRATCH/said"
  [ "$got" = "$code" ] || fail "exit code $got instead of $code: $*"
}

# says PATTERN...: each is in what the last expected command said.
says() {
  local pattern
  for pattern in "$@"; do
    grep -qiE -- "$pattern" "$SCRATCH/said" || fail "it does not say /$pattern/"
  done
}

# A failure tells what to do.
says_next() { says '^ *next: .' "$@"; }

# status PATH FILTER: a field of the status, by a filter of jq.
status() { mirrorfs status "$1" --json | jq -r "if type == \"array\" then .[0] else . end | $2"; }
status_is() { [ "$(status "$1" "$2")" = "$3" ]; }
daemon() { status "$1" .pid; }

mounted() { mountpoint -q "$1"; }
unmounted() { ! mountpoint -q "$1"; }
gone() { ! kill -0 "$1" 2>/dev/null; }
idle() { status_is "$1" .state idle && status_is "$1" '.epochs.applied >= .epochs.sealed' true; }

# equal LEFT RIGHT: by content, owners, modes, times, links, devices, ACLs and attributes.
equal() { same_by -aHAXSnc "$@"; }

# What a replica without privilege holds: owners and modes are in its records only.
equal_but_modes() { same_by -rltHSnc "$@"; }

same_by() {
  local how=$1 differences
  shift
  differences=$(rsync "$how" --delete --itemize-changes "$1/" "$2/" | grep -v '^\*deleting  *\.mirrorfs/' || true)
  [ -z "$differences" ] && return
  sed -n '1,40p' <<<"$differences"
  fail "$1 and $2 differ"
}

# The final flush, with a receipt that says what it should.
unmount() {
  mirrorfs umount "$1" --timeout "${PATIENCE}s" --json >"$SCRATCH/receipt"
  cat "$SCRATCH/receipt"
  jq -e '.epoch >= 0 and (.root_hash | length) == 64 and .bytes_shipped >= 0 and .seconds >= 0' \
    "$SCRATCH/receipt" >/dev/null || fail "the receipt lacks something"
  unmounted "$1" || fail "$1 is still mounted"
}

# What a user does after an accident: mount again (a stale mount is cleared away), drain.
remount() {
  mirrorfs mount "$@"
}

drained() { mirrorfs drain "$1" --timeout "${PATIENCE}s"; }
