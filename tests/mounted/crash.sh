# Accidents in the middle of a heavy load; afterwards both sides are equal, and nothing that was
# acknowledged is lost.

# Starts the load and lets it run for a while.
under_load() {
  : >"$SCRATCH/log"
  rm -f "$SCRATCH/log.stop"
  busy "$MOUNT" "$SCRATCH/log" &
  load=$!
  wait_until "the load runs" rounds "$SCRATCH/log" 200
}

# The round that is under way ends by itself, so that nothing of it holds the mount.
stop_load() {
  touch "$SCRATCH/log.stop"
  wait "$load" 2>/dev/null || true
}

# Every round that was acknowledged is there, or a later one under the same name.
nothing_lost() {
  local last
  last=$(tail -n 1 "$SCRATCH/log")
  grep -rhaoE -m 1 '^[0-9]+$' "$1/busy" --include='[0-9]*' | sort -n | tail -n 1 >"$SCRATCH/newest"
  [ "$(cat "$SCRATCH/newest")" -ge "$last" ] || fail "round $last was fsynced, $(cat "$SCRATCH/newest") is the newest"
}

case_daemon_killed() {
  host_up
  local round
  for round in 1 2 3; do
    mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
    under_load
    kill -KILL "$(daemon "$MOUNT")"
    stop_load
    nothing_lost "$SOURCE"
    # At once, over the stale mount of the dead daemon.
    mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
    echo "round $round" >"$MOUNT/after"
    drained "$MOUNT"
    unmount "$MOUNT"
    equal "$SOURCE" "$REPLICA"
    nothing_lost "$REPLICA"
  done
}

# The same, but nobody mounts again: the drain works from the state that was left behind.
case_drain_without_mount() {
  mirrorfs mount "$SOURCE" "$REPLICA"
  mounted "$SOURCE"
  MOUNT=$SOURCE
  under_load
  kill -KILL "$(daemon "$SOURCE")"
  stop_load
  drained "$SOURCE"
  wait_until "the stale mount is gone" unmounted "$SOURCE"
  equal "$SOURCE" "$REPLICA"
}

case_remote_killed() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  under_load
  local round process before
  for round in 1 2 3; do
    process=$(remote_process)
    kill -KILL "$process"
    before=$(wc -l <"$SCRATCH/log")
    wait_until "the load goes on" rounds "$SCRATCH/log" $((before + 100))
    wait_until "it connects again" remote_process
  done
  stop_load
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  nothing_lost "$REPLICA"
}

case_link_cut() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  under_load
  local before
  link_cut
  wait_until "it notices" status_is "$MOUNT" .link.connected false
  before=$(wc -l <"$SCRATCH/log")
  wait_until "the load goes on without the network" rounds "$SCRATCH/log" $((before + 100))
  status_is "$MOUNT" .state offline || status_is "$MOUNT" .state reconciling
  link_heal
  wait_until "it connects again by itself" status_is "$MOUNT" .link.connected true
  stop_load
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  nothing_lost "$REPLICA"
}

# Both at once, and the primary never comes back: the replica becomes a state that was.
case_primary_gone() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  under_load
  mirrorfs wait "$MOUNT" --timeout "${PATIENCE}s"
  local durable
  durable=$(tail -n 1 "$SCRATCH/log")
  mirrorfs wait "$MOUNT" --timeout "${PATIENCE}s"
  kill_both_sides
  stop_load
  mirrorfs recover "$REPLICA"
  echo "$durable" >"$SCRATCH/log"
  nothing_lost "$REPLICA"
  # A file got its final name only when it was whole, here as there.
  if find "$REPLICA/busy" -type f -name '[0-9]*' -size 0 | grep .; then
    fail "a file is there that never was so"
  fi
  # It is done, and says so again.
  mirrorfs recover "$REPLICA"
}

# A large first sync that is interrupted goes on where it was.
case_resumes() {
  host_up
  mkdir "$SOURCE/large"
  local i
  for i in 1 2 3 4; do head -c 64M /dev/urandom >"$SOURCE/large/$i"; done
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  wait_until "a part has arrived" bash -c \
    "[ \"\$(\"$MIRRORFS\" status \"$MOUNT\" --json | jq 'if type == \"array\" then .[0] else . end | .bytes_shipped')\" -gt 60000000 ]"
  kill -KILL "$(remote_process)"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  local shipped
  shipped=$(jq .bytes_shipped "$SCRATCH/receipt")
  figure "256 MiB with an interruption: $shipped bytes shipped"
  [ "$shipped" -lt $((256 * 1048576 + 128 * 1048576)) ] || fail "it sent $shipped bytes"
}
