# The demo that the README promises.

case_demo() {
  TMPDIR=$SCRATCH "$PROJECT/scripts/demo" >"$SCRATCH/out" 2>&1 || { cat "$SCRATCH/out"; fail "the demo fails"; }
  cat "$SCRATCH/out"
  grep -q '^demo: ok' "$SCRATCH/out"
  [ -z "$(find "$SCRATCH" -maxdepth 1 -name 'mirrorfs-demo.*')" ] || fail "it leaves something behind"
}
