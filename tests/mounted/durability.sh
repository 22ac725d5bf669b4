# Each durability mode does what docs/consistency.md says, as the system calls of the daemon and
# the state after an accident show.

# traced FILE COMMAND...: the daemon's system calls while the command runs.
traced() {
  local file=$1 tracer process
  shift
  command -v strace >/dev/null || skip "needs strace"
  process=$(daemon "$MOUNT")
  strace -f -y -q -tt -s 0 -o "$file" -p "$process" \
    -e trace=write,pwrite64,pwritev,pwritev2,fsync,fdatasync,syncfs,sync_file_range,openat,openat2 \
    2>"$SCRATCH/strace" 7>&- &
  tracer=$!
  wait_until "the tracer is attached" attached "$process"
  "$@"
  kill -INT "$tracer"
  wait "$tracer" || true
}

attached() {
  local task
  for task in /proc/"$1"/task/*/status; do
    [ "$(awk '/^TracerPid:/ { print $2 }' "$task")" != 0 ] || return 1
  done
}

# The calls that bring the file (or all of its file system) to stable storage.
flushes() {
  grep -cE "(fsync|fdatasync)\([0-9]+<[^>]*/source/$2>|syncfs\([0-9]+<[^>]*/source|pwritev2\([0-9]+<[^>]*/source/$2>.*RWF_D?SYNC" "$1" || true
}

# A program that has the file open and writes what it is told, one write a line. (A shell's own
# redirection closes a copy of the descriptor after each command.)
writer_starts() {
  mkfifo "$SCRATCH/lines"
  dd if="$SCRATCH/lines" of="$MOUNT/file" bs=64 status=none &
  writer=$!
  exec 7>"$SCRATCH/lines"
  wait_until "it is open" test -e "$MOUNT/file"
}

small_writes() {
  local i
  for i in 1 2 3 4 5; do
    echo "$i" >&7
    wait_until "line $i is written" grep -qx "$i" "$SOURCE/file"
  done
}

writer_ends() {
  exec 7>&-
  wait "$writer"
}

started() { mirrorfs mount "$@" "$SOURCE" "$REPLICA" "$MOUNT"; }

case_local_always() {
  started --local always
  writer_starts
  traced "$SCRATCH/trace" small_writes
  writer_ends
  local count
  count=$(flushes "$SCRATCH/trace" file)
  if [ "$count" -lt 5 ]; then
    grep -E 'openat2?\(.*(O_D?SYNC)' "$SCRATCH/trace" | grep -q file ||
      fail "five writes, but $count flushes before they were acknowledged"
  fi
  unmount "$MOUNT"
}

case_local_close() {
  started --local close
  writer_starts
  traced "$SCRATCH/before" small_writes
  [ "$(flushes "$SCRATCH/before" file)" = 0 ] || fail "it flushes before the close"
  traced "$SCRATCH/trace" writer_ends
  [ "$(flushes "$SCRATCH/trace" file)" -ge 1 ] || fail "the close does not flush"
  unmount "$MOUNT"
}

flushed_by_itself() { [ "$(flushes "$SCRATCH/trace" file)" -ge 1 ]; }
then_waiting() {
  small_writes
  wait_until "it is flushed by itself" flushed_by_itself
}

case_local_interval() {
  started --local 500ms
  writer_starts
  traced "$SCRATCH/trace" then_waiting
  writer_ends
  unmount "$MOUNT"
}

# The file is indexed, so what reaches the disk now is not the hot set's doing.
case_local_os() {
  started --local os
  writer_starts
  traced "$SCRATCH/trace" small_writes
  writer_ends
  # The replica is on the same file system: only the file itself counts.
  local count
  count=$(grep -cE "(fsync|fdatasync)\([0-9]+<[^>]*/source/file>" "$SCRATCH/trace" || true)
  [ "$count" = 0 ] || fail "$count flushes that nobody asked for"
  unmount "$MOUNT"
}

# fsync, O_SYNC and O_DSYNC are honoured under each.
case_fsync_is_honoured() {
  local mode flag
  for mode in always close 1h os; do
    started --local "$mode"
    traced "$SCRATCH/trace.$mode" dd if=/dev/zero of="$MOUNT/fsynced" bs=4096 count=1 conv=fsync status=none
    [ "$(flushes "$SCRATCH/trace.$mode" fsynced)" -ge 1 ] || fail "--local $mode: fsync does not flush"
    for flag in sync dsync; do
      traced "$SCRATCH/trace.$mode.$flag" \
        dd if=/dev/zero of="$MOUNT/$flag" bs=4096 count=3 oflag="$flag" status=none
      [ "$(flushes "$SCRATCH/trace.$mode.$flag" "$flag")" -ge 3 ] ||
        grep -E "openat2?\(.*O_D?SYNC" "$SCRATCH/trace.$mode.$flag" | grep -q "$flag" ||
        fail "--local $mode: O_${flag^^} does not flush"
    done
    unmount "$MOUNT"
  done
}

fsyncs() { dd if=/dev/urandom of="$MOUNT/$1" bs=4096 count=4 conv=fsync status=none; }

# async: the network is never waited for.
case_remote_async() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  link_cut
  local i
  for i in $(seq 1 20); do fsyncs "file.$i"; done
  link_heal
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# durable: after fsync the replica has it, whatever becomes of both sides.
case_remote_durable() {
  host_up
  mirrorfs mount "${SSH[@]}" --remote durable --remote-timeout "${PATIENCE}s" "$SOURCE" "$TARGET" "$MOUNT"
  local i
  for i in 1 2 3 4 5; do
    fsyncs "file.$i"
    cp "$SOURCE/file.$i" "$SCRATCH/expected.$i"
  done
  kill_both_sides
  mirrorfs recover "$REPLICA"
  for i in 1 2 3 4 5; do cmp "$SCRATCH/expected.$i" "$REPLICA/file.$i"; done
}

# The promise cannot be kept while the link is down: after the timeout an error, not sticky.
case_remote_timeout_error() {
  local mode
  host_up
  for mode in received durable; do
    mirrorfs mount "${SSH[@]}" --remote "$mode" --remote-timeout 2s --on-degraded error "$SOURCE" "$TARGET" "$MOUNT"
    drained "$MOUNT"
    link_cut
    expect 1 fsyncs "one.$mode"
    says 'Input/output error'
    # Without fsync nothing waits.
    echo text >"$MOUNT/two.$mode"
    link_heal
    wait_until "it connects again" status_is "$MOUNT" .link.connected true
    wait_until "fsync works again" fsyncs "three.$mode"
    unmount "$MOUNT"
    equal "$SOURCE" "$REPLICA"
  done
}

case_remote_timeout_continue() {
  host_up
  mirrorfs mount "${SSH[@]}" --remote durable --remote-timeout 2s --on-degraded continue "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  link_cut
  local began=$SECONDS i
  fsyncs first
  [ "$(status "$MOUNT" .degraded)" = true ] || fail "it does not say that it is degraded"
  for i in $(seq 1 50); do fsyncs "more.$i"; done
  figure "51 fsyncs without a link, --on-degraded continue: $((SECONDS - began)) s"
  link_heal
  wait_until "it is whole again" status_is "$MOUNT" .degraded false
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# A wait in fsync holds nobody else up.
case_remote_wait_holds_nobody() {
  host_up
  mirrorfs mount "${SSH[@]}" --remote durable --remote-timeout "${PATIENCE}s" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  link_cut
  local i
  for i in $(seq 1 64); do fsyncs "waits.$i" & done
  for i in $(seq 1 50); do
    echo "$i" >"$MOUNT/works.$i"
    [ "$(cat "$MOUNT/works.$i")" = "$i" ]
  done
  link_heal
  wait
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# wait: what was written before is durable, under any mode.
case_wait() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  head -c 8M /dev/urandom >"$MOUNT/file"
  mirrorfs wait "$MOUNT" --timeout "${PATIENCE}s"
  kill_both_sides
  mirrorfs recover "$REPLICA"
  cmp "$SOURCE/file" "$REPLICA/file"
}
