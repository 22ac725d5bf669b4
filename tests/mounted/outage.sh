# The link is down for minutes while files are overwritten all the time: memory and state stay
# bounded by what is dirty, and it catches up by itself.

resident() { awk '/^VmRSS:/ { print $2 * 1024 }' "/proc/$1/status"; }
state_bytes() { du -sB1 "$MIRRORFS_STATE_DIR" | cut -f1; }

case_bounded() {
  host_up
  head -c 64M /dev/urandom >"$SOURCE/large"
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  local process memory state worst_memory=0 worst_state=0 rounds=0 now
  process=$(daemon "$MOUNT")
  memory=$(resident "$process")
  state=$(state_bytes)
  link_cut
  local until=$((SECONDS + ${MIRRORFS_OUTAGE_SECONDS:-120} * SCALE))
  while [ "$SECONDS" -lt "$until" ]; do
    dd if=/dev/urandom of="$MOUNT/large" bs=1M count=64 conv=notrunc status=none
    for now in 1 2 3 4 5 6 7 8 9 10; do
      seq "$rounds" >"$MOUNT/small.new"
      mv "$MOUNT/small.new" "$MOUNT/small.$now"
    done
    rounds=$((rounds + 1))
    now=$(resident "$process")
    [ "$now" -le "$worst_memory" ] || worst_memory=$now
    now=$(state_bytes)
    [ "$now" -le "$worst_state" ] || worst_state=$now
  done
  figure "outage with $((rounds * 64)) MiB written over 64 MiB: memory $((memory >> 20)) to $((worst_memory >> 20)) MiB, state $((state >> 20)) to $((worst_state >> 20)) MiB"
  # 64 MiB are dirty, and 64 MiB of saved bytes are the budget.
  [ "$worst_memory" -lt $((memory + (256 << 20))) ] || fail "memory grew to $worst_memory bytes"
  [ "$worst_state" -lt $((state + (256 << 20))) ] || fail "state grew to $worst_state bytes"
  status_is "$MOUNT" .link.connected false
  [ "$(status "$MOUNT" '.lag_seconds > 10')" = true ] || fail "the lag is not told"
  [ "$(status "$MOUNT" '.pending_bytes > 0')" = true ]
  link_heal
  wait_until "it catches up by itself" idle "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# A drain that cannot be done says so, keeps everything, and is done later.
case_deadline() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  link_cut
  edits "$MOUNT"
  expect 3 mirrorfs wait "$MOUNT" --timeout 2s
  expect 3 mirrorfs drain "$MOUNT" --timeout 2s
  says_next 'changes|bytes|owed|epoch'
  expect 3 mirrorfs umount "$MOUNT" --timeout 2s
  unmounted "$MOUNT"
  link_heal
  drained "$SOURCE"
  equal "$SOURCE" "$REPLICA"
}
