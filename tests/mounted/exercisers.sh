# Programs that are made to find faults of file systems.

# pjdfstest on the mount: no failure that the native file system does not have.
pjdfstest_in() {
  mkdir -m 755 "$1/p"
  (cd "$1/p" && "$TOOLS/pjdfstest" -c "$SCRATCH/pjdfstest.toml" -p "$1/p") >"$2" 2>&1 || true
  # Lines are `open::etxtbsy   ok` or `skipped` or a failure; colours are for people.
  sed 's/\x1b\[[0-9;]*m//g' "$2" | grep -aE '^[a-z_0-9]+::[a-z_0-9:]+ ' >"$2.lines"
  awk '$NF != "ok" && $NF != "skipped" { print $1 }' "$2.lines" | sort -u >"$2.failed"
  awk '$NF == "ok" { print $1 }' "$2.lines" | sort -u >"$2.ok"
  wc -l <"$2.ok" >"$2.passed"
}

case_pjdfstest() {
  need_root
  [ -x "$TOOLS/pjdfstest" ] || skip "needs pjdfstest: scripts/needed.sh test"
  cat >"$SCRATCH/pjdfstest.toml" <<'CONFIG'
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
stat_st_birthtime = {}
[settings]
naptime = 0.05
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
CONFIG
  chmod 755 "$SCRATCH" "$SOURCE" "$MOUNT"
  mkdir -m 755 "$SCRATCH/native"
  pjdfstest_in "$SCRATCH/native" "$SCRATCH/native.log"
  mirrorfs mount --allow-other "$SOURCE" "$REPLICA" "$MOUNT"
  pjdfstest_in "$MOUNT" "$SCRATCH/mount.log"
  tail -n 5 "$SCRATCH/mount.log"
  figure "pjdfstest: $(cat "$SCRATCH/mount.log.passed") ok on the mount, $(cat "$SCRATCH/native.log.passed") natively; failed: $(wc -l <"$SCRATCH/mount.log.failed") and $(wc -l <"$SCRATCH/native.log.failed")"
  [ "$(cat "$SCRATCH/native.log.passed")" -gt 100 ] || { tail -n 40 "$SCRATCH/native.log"; fail "pjdfstest does not run here"; }
  if comm -23 "$SCRATCH/mount.log.failed" "$SCRATCH/native.log.failed" | grep .; then
    fail "these fail only on the mount"
  fi
  # link_count_max asks the C library how many links there may be, and that knows it by the type
  # of the file system only.
  if comm -13 "$SCRATCH/mount.log.ok" "$SCRATCH/native.log.ok" | grep -vx link::link_count_max; then
    fail "these are not run on the mount"
  fi
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# fsx with mmap, punch and copy_file_range, on several seeds at a time.
case_fsx() {
  [ -x "$TOOLS/fsx" ] || skip "needs fsx: scripts/needed.sh test"
  cat >"$SCRATCH/fsx.toml" <<'CONFIG'
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 2
read = 10
write = 20
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 0.1
fdatasync = 0.1
posix_fallocate = 3
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 5
CONFIG
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  local seed processes=()
  for seed in 1 2 3 4; do
    "$TOOLS/fsx" -q -f "$SCRATCH/fsx.toml" -N $((100000 * SCALE)) -S "$seed" -P "$SCRATCH" "$MOUNT/fsx.$seed" \
      >"$SCRATCH/fsx.$seed.log" 2>&1 &
    processes+=($!)
  done
  for seed in 1 2 3 4; do
    wait "${processes[$((seed - 1))]}" || { tail -n 60 "$SCRATCH/fsx.$seed.log"; fail "fsx with seed $seed"; }
  done
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# As long as a replica is behind, a copy of the file is not: each engine with verification.
fio_with() {
  local name=$1
  shift
  fio --name="$name" --directory="$MOUNT" --size=$((32 * SCALE))M --bs=4k --rw=randrw --rwmixread=30 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --fallocate=none --group_reporting --output="$SCRATCH/fio.$name" \
    "$@" || { tail -n 40 "$SCRATCH/fio.$name"; fail "fio: $name"; }
}

fio_has() { fio --enghelp 2>/dev/null | grep -qw "$1"; }

case_fio() {
  command -v fio >/dev/null || skip "needs fio"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  fio_with sync --ioengine=sync
  fio_with psync --ioengine=psync --fsync=64
  fio_with mmap --ioengine=mmap
  fio_with direct --ioengine=psync --direct=1
  fio_with overlapping --ioengine=psync --numjobs=4 --bsrange=1k-64k --bs_unaligned=1
  if fio_has libaio; then
    fio_with libaio --ioengine=libaio --iodepth=16
    fio_with libaio-direct --ioengine=libaio --iodepth=16 --direct=1
  fi
  if fio_has io_uring && fio --name=probe --ioengine=io_uring --size=4k --rw=write --filename="$SCRATCH/probe" \
    --output=/dev/null 2>/dev/null; then
    fio_with io_uring --ioengine=io_uring --iodepth=16
    fio_with io_uring-direct --ioengine=io_uring --iodepth=16 --direct=1
  fi
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}
