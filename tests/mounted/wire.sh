# What goes over the wire: bytes of the TCP stream in both directions, ssh included.

# measured NAME LIMIT COMMAND...: what the command costs until it is applied at the replica.
measured() {
  local name=$1 limit=$2 before after
  shift 2
  wait_until "it is idle" idle "$MOUNT"
  before=$(wire_bytes)
  "$@"
  mirrorfs drain "$MOUNT" --timeout "${PATIENCE}s" >/dev/null
  after=$(wire_bytes)
  figure "$name: $((after - before)) bytes on the wire"
  [ $((after - before)) -lt "$limit" ] || fail "$name took $((after - before)) bytes, not below $limit"
}

read_bytes() { awk '/^rchar:/ { print $2 }' "/proc/$(daemon "$MOUNT")/io"; }

overwrite() { head -c 4096 /dev/urandom | dd of="$MOUNT/large" bs=4096 seek=100003 conv=notrunc status=none; }

case_overwrite() {
  host_up
  # Random, so that compression cannot hide anything.
  head -c 1G /dev/urandom >"$SOURCE/large"
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  local before
  wait_until "it is idle" idle "$MOUNT"
  before=$(read_bytes)
  measured "4 KiB over the middle of 1 GiB" 6144 overwrite
  before=$(($(read_bytes) - before))
  figure "4 KiB over the middle of 1 GiB: the daemon read $before bytes in all"
  # The block that it touches, what came over the wire, and requests of the kernel.
  [ "$before" -lt $((1 << 20)) ] || fail "the daemon read $before bytes"
  unmount "$MOUNT"
  cmp "$SOURCE/large" "$REPLICA/large"
}

rename_directory() { mv "$MOUNT/many" "$MOUNT/renamed"; }

case_rename_directory() {
  host_up
  mkdir "$SOURCE/many"
  (cd "$SOURCE/many" && seq 1 10000 | split -l 1 -a 4 -)
  [ "$(find "$SOURCE/many" -type f | wc -l)" = 10000 ]
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  measured "a directory of 10,000 files renamed" 1024 rename_directory
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

rename_save() {
  { head -c 1000 "$MOUNT/document"; head -c 100 /dev/urandom; tail -c +1001 "$MOUNT/document"; } >"$MOUNT/document.new"
  sync "$MOUNT/document.new"
  mv "$MOUNT/document.new" "$MOUNT/document"
}

case_rename_save() {
  host_up
  head -c 10M /dev/urandom >"$SOURCE/document"
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  drained "$MOUNT"
  measured "10 MiB saved by rename with 100 bytes inserted" 16384 rename_save
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}
