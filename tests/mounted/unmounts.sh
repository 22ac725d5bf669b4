# Every way to end a mount seals, drains and leaves a clean state.

# ends COMMAND...: after it the daemon is gone and both sides are equal.
ends() {
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  edits "$MOUNT"
  names_change "$MOUNT"
  local process
  process=$(daemon "$MOUNT")
  "$@" "$process"
  wait_until "the daemon ends" gone "$process"
  unmounted "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  # Clean: the next mount compares nothing and is idle at once.
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  wait_until "it is idle" idle "$MOUNT"
  unmount "$MOUNT"
}

by_mirrorfs() { unmount "$MOUNT"; }
by_umount() { umount "$MOUNT"; }
by_fusermount() { fusermount3 -u "$MOUNT"; }
by_term() { kill -TERM "$1"; }
by_interrupt() { kill -INT "$1"; }

case_mirrorfs_umount() { ends by_mirrorfs; }
case_umount() { need_root && ends by_umount; }
case_fusermount() { ends by_fusermount; }
case_sigterm() { ends by_term; }
case_sigint() { ends by_interrupt; }

# In the foreground, as a service manager runs it.
case_foreground() {
  "$MIRRORFS" mount --foreground "$SOURCE" "$REPLICA" "$MOUNT" &
  local process=$!
  wait_until "it is mounted" mounted "$MOUNT"
  edits "$MOUNT"
  kill -TERM "$process"
  wait "$process"
  unmounted "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# A busy mount is not unmounted; it says who holds it.
case_busy() {
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  echo text >"$MOUNT/held"
  exec 9<"$MOUNT/held"
  sleep 1000 <"$MOUNT/held" &
  local holder=$!
  exec 9<&-
  expect 6 mirrorfs umount "$MOUNT"
  says_next "$holder"
  mounted "$MOUNT"
  echo more >"$MOUNT/still-works"
  # Lazily it goes at once, and the command ends when the last holder has let go.
  mirrorfs umount --lazy "$MOUNT" &
  local unmounting=$!
  wait_until "it is not mounted any more" unmounted "$MOUNT"
  kill "$holder"
  wait "$holder" 2>/dev/null || true
  wait "$unmounting"
  equal "$SOURCE" "$REPLICA"
}

# Others unmount lazily under a writer: what it writes until it lets go is not lost.
case_lazy_under_a_writer() {
  need_root
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  local process
  process=$(daemon "$MOUNT")
  exec 8>"$MOUNT/written"
  echo before >&8
  umount -l "$MOUNT"
  echo after >&8
  exec 8>&-
  wait_until "the daemon ends" gone "$process"
  [ "$(cat "$REPLICA/written")" = $'before\nafter' ]
  equal "$SOURCE" "$REPLICA"
}

# Over SOURCE, with a shell that stands underneath.
case_shell_underneath() {
  echo one >"$SOURCE/file"
  cd "$SOURCE"
  expect 0 mirrorfs mount "$SOURCE" "$REPLICA"
  says 'cd "?\$PWD"?'
  cd /
  cd "$SOURCE"
  echo two >file
  cd /
  unmount "$SOURCE"
  [ "$(cat "$REPLICA/file")" = two ]
}

# A mirror within a mirror, and the state of a mirror within its own source.
case_nested() {
  mkdir -p "$SOURCE/inner" "$SCRATCH/other"
  mirrorfs mount "$SOURCE" "$REPLICA"
  mirrorfs mount "$SOURCE/inner" "$SCRATCH/other"
  edits "$SOURCE/inner"
  unmount "$SOURCE/inner"
  unmount "$SOURCE"
  equal "$SOURCE/inner" "$SCRATCH/other"
  equal "$SOURCE" "$REPLICA"
}

case_everything_inside_source() {
  # Keys, known hosts, state and the binary, all below what is mounted over.
  host_up
  local key
  mkdir -p "$SOURCE/.ssh" "$SOURCE/bin" "$SOURCE/.local/state"
  cp "$SCRATCH/sshd/key" "$SCRATCH/sshd/known_hosts" "$SOURCE/.ssh/"
  cp "$MIRRORFS" "$SOURCE/bin/mirrorfs"
  key=$SOURCE/.ssh/key
  export MIRRORFS_STATE_DIR=$SOURCE/.local/state
  "$SOURCE/bin/mirrorfs" mount --identity "$key" --known-hosts "$SOURCE/.ssh/known_hosts" \
    --remote-path "$MIRRORFS" "$SOURCE" "$TARGET"
  edits "$SOURCE"
  kill -KILL "$(remote_process)"
  names_change "$SOURCE"
  wait_until "it connects again" remote_process
  unmount "$SOURCE"
  # The state itself changes until the last moment, on one side.
  differences=$(rsync -aHAXSnc --delete --itemize-changes "$SOURCE/" "$REPLICA/" |
    grep -vE '^\*deleting  *\.mirrorfs/|\.local/state/' || true)
  [ -z "$differences" ] || fail "$differences"
}
