# A day's work, over each kind of mount and link; afterwards both sides are equal.

case_local_target() {
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  everyday_work "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  [ "$(sqlite3 "$REPLICA/database" 'PRAGMA integrity_check')" = ok ]
}

case_over_source() {
  crate_sources "$SOURCE/before"
  mirrorfs mount "$SOURCE" "$REPLICA"
  mounted "$SOURCE"
  everyday_work "$SOURCE"
  # The first sync is part of what the unmount waits for.
  unmount "$SOURCE"
  equal "$SOURCE" "$REPLICA"
}

case_ssh() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  everyday_work "$MOUNT"
  local began=$SECONDS
  unmount "$MOUNT"
  figure "unmount after a day's work over ssh: $((SECONDS - began)) s, $(jq .bytes_shipped "$SCRATCH/receipt") bytes shipped"
  equal "$SOURCE" "$REPLICA"
}

# The user's own ssh instead of the built-in client.
case_rsh() {
  host_up
  local command="ssh -F none -o BatchMode=yes -i $SCRATCH/sshd/key -o UserKnownHostsFile=$SCRATCH/sshd/known_hosts"
  mirrorfs mount -e "$command" --remote-path "$MIRRORFS" "$SOURCE" "$TARGET" "$MOUNT"
  edits "$MOUNT"
  names_change "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# The project builds itself inside the mount.
case_build() {
  host_up
  mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  mkdir "$MOUNT/project"
  tar -C "$PROJECT" --exclude=./target --exclude=./.git -cf - . | tar -C "$MOUNT/project" -xf -
  (
    cd "$MOUNT/project"
    unset CARGO_TARGET_DIR
    # The fastest build there is: it is the files that count.
    cargo build --quiet --offline --config 'profile.dev.opt-level=0' \
      --config 'profile.dev.package."*".opt-level=0'
    target/debug/mirrorfs --version
    touch src/lib.rs
    cargo build --quiet --offline --config 'profile.dev.opt-level=0' \
      --config 'profile.dev.package."*".opt-level=0'
  )
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# A copy made by rsync is taken over, and only what differs is sent.
case_adopt() {
  host_up
  crate_sources "$SOURCE/tree"
  rsync -aHAX "$SOURCE/" "$REPLICA/"
  echo changed >>"$(find "$SOURCE/tree" -name '*.rs' | sed -n '1p')"
  rm "$(find "$SOURCE/tree" -name '*.md' | sed -n '1p')"
  expect 4 mirrorfs mount "${SSH[@]}" "$SOURCE" "$TARGET" "$MOUNT"
  says_next '--adopt'
  mirrorfs mount "${SSH[@]}" --adopt "$SOURCE" "$TARGET" "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
  local shipped size
  shipped=$(jq .bytes_shipped "$SCRATCH/receipt")
  size=$(du -sb "$SOURCE" | cut -f1)
  figure "adopting $size bytes sent $shipped"
  [ "$shipped" -lt $((size / 10)) ] || fail "it sent $shipped of $size bytes"
}

# Edits made while it is not mounted are found at the next mount.
case_edited_while_unmounted() {
  names_change "$SOURCE"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  edits "$SOURCE"
  rm -r "$SOURCE/names/d"
  mirrorfs mount "$SOURCE" "$REPLICA" "$MOUNT"
  unmount "$MOUNT"
  equal "$SOURCE" "$REPLICA"
}

# Excluded paths live on the primary only.
case_exclude() {
  mirrorfs mount --exclude '*.o' --exclude /build/ "$SOURCE" "$REPLICA" "$MOUNT"
  mkdir -p "$MOUNT/build/deep" "$MOUNT/src"
  echo x >"$MOUNT/build/deep/x"
  echo y >"$MOUNT/src/y.o"
  echo z >"$MOUNT/src/z.c"
  mv "$MOUNT/src/z.c" "$MOUNT/build/"
  mv "$MOUNT/build/deep" "$MOUNT/shallow"
  unmount "$MOUNT"
  [ ! -e "$REPLICA/build" ] && [ ! -e "$REPLICA/src/y.o" ] && [ ! -e "$REPLICA/src/z.c" ]
  [ "$(cat "$REPLICA/shallow/x")" = x ]
}
