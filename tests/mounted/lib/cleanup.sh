# Removing what a case leaves behind. Sourced by the runner.

# The processes of a case: whatever has its token in the environment, daemons too.
case_processes() {
  local environ pid
  for environ in /proc/[0-9]*/environ; do
    pid=${environ#/proc/}
    pid=${pid%/environ}
    [ "$pid" = "$$" ] && continue
    if tr '\0' '\n' <"$environ" 2>/dev/null | grep -qxF "MIRRORFS_TEST_CASE=$1"; then
      echo "$pid"
    fi
  done 2>/dev/null
}

mounts_below() {
  awk -v place="$1/" '{
    path = $2
    gsub(/\\040/, " ", path)
    if (index(path "/", place) == 1 && path "/" != place) print path
  }' /proc/self/mounts | tac
}

# clean_case TOKEN DIRECTORY
clean_case() {
  local token=$1 scratch=$2 mount pid namespace round
  # A forced unmount aborts the connection, so that nobody stays stuck in it.
  mounts_below "$scratch" | while read -r mount; do
    umount -f -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" 2>/dev/null
  done
  if [ -e "$scratch/.namespaces" ]; then
    while read -r namespace; do
      for pid in $(ip netns pids "$namespace" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
      ip netns del "$namespace" 2>/dev/null
    done <"$scratch/.namespaces"
  fi
  for round in 1 2 3; do
    for pid in $(case_processes "$token"); do kill -KILL "$pid" 2>/dev/null; done
    [ -z "$(case_processes "$token")" ] && break
    sleep "0.$round"
  done
  mounts_below "$scratch" | while read -r mount; do umount -l "$mount" 2>/dev/null; done
  chattr -R -i "$scratch" 2>/dev/null
  rm -rf --one-file-system "$scratch"
}

# Who is still there, and what they wait for.
collect_processes() {
  local pid
  for pid in $(case_processes "$1"); do
    ps -o pid=,stat=,wchan:24=,args= -p "$pid" | cut -c1-160
  done
}

# What the daemons and the hosts of a case said.
collect_logs() {
  local log
  find "$1" -xdev \( -name 'daemon.log*' -o -name 'sshd.log' \) -size +0 2>/dev/null |
    while read -r log; do
      echo "--- ${log#"$1"/}"
      tail -n 40 "$log"
    done
}
