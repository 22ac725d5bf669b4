# Each kind of bad input: a clear message that says what to do, a documented exit code
# (docs/operations.md), and nothing lost.

case_source_missing() {
  expect 12 mirrorfs mount "$SCRATCH/none" "$REPLICA"
  says_next none
}

case_source_no_directory() {
  : >"$SCRATCH/file"
  expect 12 mirrorfs mount "$SCRATCH/file" "$REPLICA"
  says_next file
}

case_source_unreadable() {
  need_root
  chmod 700 "$SOURCE"
  mkdir -m 777 "$SCRATCH/others"
  expect 12 setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$SCRATCH/others" \
    MIRRORFS_STATE_DIR="$SCRATCH/others/state" "$MIRRORFS" mount "$SOURCE" "$SCRATCH/others/replica" "$SCRATCH/others"
  says_next 'permission|read'
}

case_target_inside_source() {
  mkdir "$SOURCE/inside"
  expect 12 mirrorfs mount "$SOURCE" "$SOURCE/inside"
  says_next inside
}

case_source_inside_target() {
  mkdir "$REPLICA/inside"
  expect 12 mirrorfs mount "$REPLICA/inside" "$REPLICA"
  says_next inside
}

case_same_directory() {
  expect 12 mirrorfs mount "$SOURCE" "$SOURCE/."
  says_next
}

case_mountpoint_missing() {
  expect 12 mirrorfs mount "$SOURCE" "$REPLICA" "$SCRATCH/none"
  says_next none
}

case_mountpoint_busy() {
  mkdir "$SCRATCH/other" "$SCRATCH/other.replica"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  expect 6 mirrorfs mount "$SCRATCH/other" "$SCRATCH/other.replica" "$MOUNT"
  says_next mount
  # The same mirror twice.
  expect 6 mirrorfs mount "$SOURCE" "$REPLICA" "$SCRATCH/other"
  says_next
  unmount "$MOUNT"
}

case_target_malformed() {
  expect 2 mirrorfs mount "$SOURCE" "ssh://host"
  says_next
  expect 2 mirrorfs mount "$SOURCE" "ftp://host/path"
  expect 2 mirrorfs mount "$SOURCE" "-oProxyCommand=x:/path"
}

case_target_unwritable() {
  chattr +i "$REPLICA" 2>/dev/null || skip "no immutable directories here"
  expect 9 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next
  chattr -i "$REPLICA"
  unmounted "$MOUNT"
}

case_target_not_empty() {
  echo precious >"$REPLICA/file"
  expect 4 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next '--adopt'
  [ "$(cat "$REPLICA/file")" = precious ]
}

case_target_of_somebody_else() {
  mkdir "$SCRATCH/other"
  echo theirs >"$SCRATCH/other/file"
  mirrorfs mount "$SCRATCH/other" "$REPLICA"
  unmount "$SCRATCH/other"
  export MIRRORFS_STATE_DIR=$SCRATCH/state.2
  expect 4 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next '--adopt' 'another|other|else'
  [ "$(cat "$REPLICA/file")" = theirs ]
}

case_source_unexpectedly_empty() {
  echo text >"$SOURCE/file"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  rm "$SOURCE/file"
  expect 4 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next '--allow-empty-source'
  [ "$(cat "$REPLICA/file")" = text ]
  mirrorfs mount --allow-empty-source "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  [ ! -e "$REPLICA/file" ]
}

case_source_replaced() {
  echo text >"$SOURCE/file"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  mv "$SOURCE" "$SOURCE.old"
  mkdir "$SOURCE"
  echo other >"$SOURCE/other"
  expect 4 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next '--allow-changed-source'
  [ "$(cat "$REPLICA/file")" = text ]
}

case_host_unknown() {
  host_up
  : >"$SCRATCH/sshd/known_hosts"
  expect 5 mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  says_next 'SHA256:' '--accept-new-host-key'
  mirrorfs mount "${SSH[@]}" --accept-new-host-key "$SOURCE" "$TARGET" "$MOUNT"
  grep -q "$HOST" "$SCRATCH/sshd/known_hosts"
  unmount "$MOUNT"
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  unmount "$MOUNT"
}

case_host_key_changed() {
  host_up
  ssh-keygen -q -t ed25519 -N '' -f "$SCRATCH/sshd/other"
  echo "$HOST $(cut -d' ' -f1,2 "$SCRATCH/sshd/other.pub")" >"$SCRATCH/sshd/known_hosts"
  expect 5 mirrorfs mount "${SSH[@]}" --accept-new-host-key "$SOURCE" "$TARGET" "$MOUNT"
  says_next 'CHANGED' 'ssh-keygen'
}

case_authentication_refused() {
  host_up
  : >"$SCRATCH/sshd/authorized_keys"
  expect 5 mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  says_next 'refused' 'key'
}

case_host_unreachable() {
  host_up
  expect 5 mirrorfs mount "${SSH[@]}" --port 2 "$SOURCE" "$TARGET" "$MOUNT"
  says_next 'port 2'
  expect 5 mirrorfs mount "${SSH[@]}" "$SOURCE" "root@no-such-host.invalid:/x" "$MOUNT"
  says_next no-such-host
}

case_remote_missing() {
  host_up
  expect 5 mirrorfs mount "${SSH[@]:0:4}" --remote-path /no/such/mirrorfs "$SOURCE" "$TARGET" "$MOUNT"
  says_next '--remote-path'
}

# frame TEXT: what a replica answers that speaks no version of ours (docs/protocol.md): Refused,
# Version, and the text.
refusal_frame() {
  local text=$1 message body
  printf -v message '\\x01\\x00\\x%02x%s' "${#text}" "$text"
  printf -v body '\\x00\\x%02x%s' $((${#text} + 3)) "$message"
  printf "\\x$(printf %02x $((${#text} + 5)))\\x00\\x00\\x00"
  # gzip ends with the checksum that a frame begins with.
  printf "$body" | gzip -c | tail -c 8 | head -c 4
  printf "$body"
}

case_remote_of_another_version() {
  host_up
  refusal_frame "this mirrorfs 9.0 speaks only version 7" >"$SCRATCH/frame"
  printf '#!/bin/sh\ncat %s/frame\nexec cat >/dev/null\n' "$SCRATCH" >"$SCRATCH/other"
  chmod +x "$SCRATCH/other"
  expect 11 mirrorfs mount "${SSH[@]:0:4}" --remote-path "$SCRATCH/other" "$SOURCE" "$TARGET" "$MOUNT"
  says_next 'version' 'mirrorfs 9.0'
}

case_remote_is_something_else() {
  host_up
  printf '#!/bin/sh\necho "Welcome to this host!"\nexec cat >/dev/null\n' >"$SCRATCH/other"
  chmod +x "$SCRATCH/other"
  expect 11 mirrorfs mount "${SSH[@]:0:4}" --remote-path "$SCRATCH/other" "$SOURCE" "$TARGET" "$MOUNT"
  says_next 'is the other side mirrorfs'
}

# A small disk of its own at this path.
small_disk() {
  need_root
  truncate -s "$2" "$SCRATCH/small.$3"
  mkfs.ext4 -q -m 0 "$SCRATCH/small.$3"
  mkdir -p "$1"
  mount -o loop "$SCRATCH/small.$3" "$1" || skip "no loop devices here"
  rmdir "$1/lost+found"
}

case_replica_disk_full() {
  small_disk "$REPLICA" 40M replica
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  echo first >"$MOUNT/first"
  drained "$MOUNT"
  head -c 100M /dev/urandom >"$MOUNT/large"
  expect 9 mirrorfs drain "$MOUNT" --timeout 20s
  says_next 'full|space'
  echo "goes on" >"$MOUNT/second"
  rm "$MOUNT/large"
  wait_until "it goes on by itself" idle "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

case_primary_disk_full() {
  small_disk "$SOURCE" 40M source
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  expect 1 dd if=/dev/urandom of="$MOUNT/large" bs=1M count=100 conv=fsync
  says 'No space left'
  rm "$MOUNT/large"
  echo enough >"$MOUNT/small"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

case_state_disk_full() {
  small_disk "$SCRATCH/state" 24M state
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  dd if=/dev/zero of="$SCRATCH/state/filler" bs=64k 2>/dev/null || true
  edits "$MOUNT" || true
  echo written >"$MOUNT/file"
  rm "$SCRATCH/state/filler"
  wait_until "it goes on by itself" idle "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

case_state_lost() {
  names_change "$SOURCE"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  rm -r "$MIRRORFS_STATE_DIR"
  expect 4 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next '--adopt'
  mirrorfs mount --adopt "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

case_state_corrupted() {
  names_change "$SOURCE"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  local index
  index=$(find "$MIRRORFS_STATE_DIR" -name '*.redb' -o -name 'index*' -type f | sed -n '1p')
  [ -n "$index" ] || fail "where is the index?"
  unmount "$MOUNT"
  # The header and the middle.
  dd if=/dev/urandom of="$index" bs=512 count=8 conv=notrunc status=none
  expect 10 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next "$(basename "$index")"
  equal "$SOURCE" "$REPLICA"
}

case_replica_records_corrupted() {
  names_change "$SOURCE"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  local records
  records=$(find "$REPLICA/.mirrorfs" -name 'records*' -type f | sed -n '1p')
  [ -n "$records" ] || fail "where are the records?"
  dd if=/dev/urandom of="$records" bs=512 count=8 conv=notrunc status=none
  expect 10 mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  says_next
  expect 10 mirrorfs recover "$REPLICA"
}

case_stale_mount() {
  echo text >"$SOURCE/file"
  mirrorfs mount "$SOURCE" "$REPLICA"
  kill -KILL "$(daemon "$SOURCE")"
  expect 1 stat "$SOURCE/file"
  mirrorfs mount "$SOURCE" "$REPLICA"
  echo more >>"$SOURCE/file"
  unmount "$SOURCE"
  equal "$SOURCE" "$REPLICA"
}

case_not_mounted() {
  expect 7 mirrorfs umount "$MOUNT"
  says_next
  expect 7 mirrorfs wait "$MOUNT"
  expect 7 mirrorfs status "$MOUNT"
  expect 7 mirrorfs drain "$MOUNT"
}

case_recover_of_no_replica() {
  mkdir "$SCRATCH/plain"
  echo text >"$SCRATCH/plain/file"
  local code=0
  mirrorfs recover "$SCRATCH/plain" || code=$?
  [ "$code" != 0 ]
  [ "$(find "$SCRATCH/plain" | wc -l)" = 2 ] || fail "it left something there"
}
