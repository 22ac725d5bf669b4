# Work as people do it in a project directory.

# crate_sources DIRECTORY: a real source tree of at least 10,000 files.
crate_sources() {
  local round=0 sources=("$CARGO_HOME"/registry/src/*/)
  [ -d "${sources[0]}" ] || fail "no unpacked crates in $CARGO_HOME/registry/src"
  while :; do
    mkdir -p "$1/$round"
    # As tar does it: directories get their times after their contents.
    tar -C "${sources[0]}" -cf - . | tar -C "$1/$round" -xf -
    round=$((round + 1))
    [ "$(find "$1" -type f | wc -l)" -lt 10000 ] || break
    [ "$round" -lt 20 ] || break
  done
}

git_work() {
  (
    cd "$1"
    git init -q -b main .
    git config gc.auto 0
    git config user.name "A Person"
    git config user.email "person@example.org"
    git add -A .
    git commit -q -m "all of it"
    git switch -q -c other
    find . -path ./.git -prune -o -name '*.rs' -print | sed -n '1,500p' | while read -r file; do
      echo "// a line" >>"$file"
    done
    find . -path ./.git -prune -o -name '*.md' -print | sed -n '1,100p' | xargs -r git rm -q
    git commit -q -a -m "changes"
    git switch -q main
    git switch -q other
    git switch -q main
    git merge -q other
    git gc -q
    git fsck --no-progress >/dev/null
    [ -z "$(git status --porcelain)" ] || fail "git sees changes where there are none"
  )
}

edits() {
  local i
  mkdir -p "$1/edits"
  (
    cd "$1/edits"
    for i in $(seq 1 200); do
      seq 1 "$((i * 20))" >"saved.$((i % 20)).new"
      sync -d "saved.$((i % 20)).new"
      mv "saved.$((i % 20)).new" "saved.$((i % 20))"
    done
    head -c 4M /dev/urandom >inplace
    for i in $(seq 1 200); do
      printf 'at %s' "$i" | dd of=inplace bs=1 seek=$((i * 20011 % 4000000)) conv=notrunc status=none
    done
    for i in $(seq 1 100); do echo "line $i" >>appended; done
    truncate -s 1000 appended
    truncate -s 1G sparse
    printf end | dd of=sparse bs=1 seek=500000000 conv=notrunc status=none
    head -c 1M /dev/urandom >holes
    fallocate -p -o 100000 -l 300000 holes
    fallocate -z -o 500001 -l 100001 holes
    fallocate -l 2M allocated
  )
}

# Names, kinds and attributes out of the ordinary.
oddities() {
  mkdir -p "$1/odd"
  (
    cd "$1/odd"
    : >"$(printf 'x%.0s' $(seq 255))"
    : >$'a\nb'
    : >$'not \xff UTF-8'
    : >" spaces "
    : >-dash
    ln -s /nowhere/at/all dangling
    ln -s "$(printf 'y%.0s' $(seq 4000))" long-link
    echo once >linked
    ln linked linked.2
    mkdir sub
    ln linked sub/linked.3
    mkfifo fifo
    mkdir -p $(seq -s / 1 60)
    setfattr -n user.comment -v "a value" linked
    touch -d '1999-12-31 23:59:59.123456789' old
    mkdir empty
    chmod 0700 empty
    if [ "$(id -u)" = 0 ]; then
      mknod null c 1 3
      cp /bin/true setuid
      chmod 4755 setuid
      : >owned
      chown 65534:65534 owned
      setfacl -m u:1:rw,g:2:r owned
      mkdir inherited
      setfacl -d -m u:1:rwx inherited
      : >inherited/file
    fi
  )
}

# A change of names in every way.
names_change() {
  mkdir -p "$1/names"
  (
    cd "$1/names"
    mkdir a b c
    for i in $(seq 1 100); do echo "$i" >"a/$i"; done
    mv a b/a
    mv b/a/1 c/
    ln c/1 c/again
    rm b/a/2
    mv b/a d
    mkdir b/a
    mv d/3 b/a/3
    # A cycle: x -> y -> z -> x.
    for i in x y z; do echo "$i" >$i; done
    mv x t && mv z x && mv y z && mv t y
    rm -r c
  )
}

database() {
  sqlite3 "$1/database" >/dev/null <<'SQL'
PRAGMA journal_mode = WAL;
CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT, number INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
  INSERT INTO row SELECT i, hex(randomblob(50)), i FROM n;
CREATE INDEX by_number ON row(number);
UPDATE row SET number = number * 7 % 1000;
DELETE FROM row WHERE id % 3 = 0;
PRAGMA wal_checkpoint(TRUNCATE);
VACUUM;
SQL
  local i
  for i in $(seq 1 100); do
    sqlite3 "$1/database" "UPDATE row SET text = 'round $i' WHERE id = $i * 7;"
  done
  [ "$(sqlite3 "$1/database" 'PRAGMA integrity_check')" = ok ] || fail "the database is damaged"
}

everyday_work() {
  crate_sources "$1/tree"
  git_work "$1/tree"
  edits "$1"
  oddities "$1"
  names_change "$1"
  database "$1"
}

# busy DIRECTORY LOG: writes until killed. Each round's number goes to LOG, on another disk, once
# its file has been fsynced under its final name.
busy() {
  local round=0
  mkdir -p "$1/busy"
  while ! [ -e "$2.stop" ] && busy_round "$1/busy" "$2" $((round += 1)); do :; done
  echo "the load ended in round $round"
}

busy_round() {
  { echo "$3"; head -c $((RANDOM * 8)) /dev/urandom; } >"$1/new" &&
    sync "$1/new" &&
    mv "$1/new" "$1/$(($3 % 300))" &&
    sync "$1" &&
    echo "$3" >>"$2" &&
    printf '%s' "$3" | dd of="$1/large" bs=1 seek=$((RANDOM * 1000)) conv=notrunc status=none &&
    if [ $(($3 % 50)) = 0 ]; then
      rm -rf "$1/moved.$3" && mkdir -p "$1/d.$3" && mv "$1/$(($3 % 300))" "$1/d.$3/" && mv "$1/d.$3" "$1/moved.$3"
    fi
}

rounds() { [ "$(wc -l <"$1" 2>/dev/null || echo 0)" -ge "$2" ]; }
