# Root for all users, each with their own permissions; and an ordinary user.

as_nobody() { setpriv --reuid=65534 --regid=65534 --groups="${GROUPS_OF:-65534}" "$@"; }

case_allow_other() {
  need_root
  chmod 755 "$SCRATCH" "$SOURCE" "$MOUNT"
  mirrorfs mount --allow-other "$SOURCE" "$REPLICA" "$MOUNT"
  mkdir -m 777 "$MOUNT/open"
  mkdir -m 700 "$MOUNT/closed"
  echo secret >"$MOUNT/closed/file"
  cat "$MOUNT/closed/file"
  as_nobody sh -c "echo text >'$MOUNT/open/theirs'"
  [ "$(stat -c %u:%g "$SOURCE/open/theirs")" = 65534:65534 ] || fail "it belongs to somebody else"
  # What root has in its cache is nobody's.
  expect 1 as_nobody cat "$MOUNT/closed/file"
  says 'Permission denied'
  expect 1 as_nobody touch "$MOUNT/file"
  # A group that is not their first.
  mkdir -m 770 "$MOUNT/group"
  chown 0:4242 "$MOUNT/group"
  expect 1 as_nobody touch "$MOUNT/group/file"
  GROUPS_OF=65534,4242 as_nobody sh -c "echo x >'$MOUNT/group/file'"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  [ "$(stat -c %u:%g "$REPLICA/open/theirs")" = 65534:65534 ]
}

# Without --allow-other nobody else gets in.
case_private() {
  need_root
  chmod 755 "$SCRATCH" "$SOURCE" "$MOUNT"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  echo text >"$MOUNT/file"
  expect 1 as_nobody cat "$MOUNT/file"
  unmount "$MOUNT"
}

# An ordinary user, through fusermount3, to a target of their own.
case_ordinary_user() {
  need_root
  [ -u "$(readlink -f "$(command -v fusermount3)")" ] || skip "fusermount3 is not setuid here"
  if ! as_nobody test -w /dev/fuse; then
    # As udev makes it on most machines, but only for this case.
    [ -z "${WITH_FUSE:-}" ] || fail "/dev/fuse is out of reach"
    mknod -m 666 "$SCRATCH/fuse" c 10 229
    export WITH_FUSE=1
    exec unshare --mount --propagation private bash -euc \
      'mount --bind "$1" /dev/fuse && exec bash "$2" "$3" ordinary_user' _ "$SCRATCH/fuse" \
      "$PROJECT/tests/mounted/lib/one.sh" "$PROJECT/tests/mounted/users.sh"
  fi
  chmod 755 "$SCRATCH"
  local binary=$SCRATCH/mirrorfs
  cp "$MIRRORFS" "$binary"
  chown 65534:65534 "$SOURCE" "$REPLICA" "$MOUNT" "$HOME"
  mkdir "$SCRATCH/state"
  chown 65534:65534 "$SCRATCH/state"
  as_nobody "$binary" mount "$SOURCE" "$REPLICA" "$MOUNT"
  as_nobody bash -euo pipefail -c ". '$PROJECT/tests/mounted/lib/load.sh'; edits '$MOUNT'; names_change '$MOUNT'"
  as_nobody "$binary" umount "$MOUNT" --timeout "${PATIENCE}s"
  equal_but_modes "$SOURCE" "$REPLICA"
  # A stranger gets nothing from the replica.
  [ -z "$(find "$REPLICA" -mindepth 1 -perm /077 ! -type l)" ] || fail "the replica is open to others"
}

# Locks between processes, also one that is interrupted while it waits.
case_locks() {
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  : >"$MOUNT/lock"
  flock "$MOUNT/lock" sleep 1000 &
  local holder=$!
  wait_until "it is held" bash -c "! flock -n '$MOUNT/lock' true"
  flock "$MOUNT/lock" true &
  local waiter=$!
  wait_until "somebody waits" grep -q -- "-> FLOCK" /proc/locks
  kill "$waiter"
  wait "$waiter" 2>/dev/null && fail "it got the lock"
  # flock(1) runs its command as a child, which holds the lock, too.
  pkill -P "$holder" || true
  wait "$holder" 2>/dev/null || true
  flock -w "$PATIENCE" "$MOUNT/lock" true
  unmount "$MOUNT"
}
