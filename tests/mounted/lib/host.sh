# A second host: a network namespace of its own, with a sshd in it and a link to it that can be cut.

# host_up: sets HOST (its address), TARGET (user@host:replica) and SSH (options of mirrorfs).
host_up() {
  need_root
  local number=$(($$ % 250 + 1))
  NAMESPACE=mirrorfs-$$
  NEAR=mfs$number.near
  HOST=10.199.$number.2
  echo "$NAMESPACE" >>"$SCRATCH/.namespaces"
  ip netns add "$NAMESPACE"
  ip link add "$NEAR" type veth peer name far netns "$NAMESPACE"
  ip addr add "10.199.$number.1/30" dev "$NEAR"
  ip link set "$NEAR" up
  ip -n "$NAMESPACE" addr add "$HOST/30" dev far
  ip -n "$NAMESPACE" link set far up
  ip -n "$NAMESPACE" link set lo up
  mkdir -p "$SCRATCH/sshd" /run/sshd
  ssh-keygen -q -t ed25519 -N '' -C host -f "$SCRATCH/sshd/host_key"
  ssh-keygen -q -t ed25519 -N '' -C client -f "$SCRATCH/sshd/key"
  cp "$SCRATCH/sshd/key.pub" "$SCRATCH/sshd/authorized_keys"
  echo "$HOST $(cut -d' ' -f1,2 "$SCRATCH/sshd/host_key.pub")" >"$SCRATCH/sshd/known_hosts"
  cat >"$SCRATCH/sshd/config" <<CONFIG
ListenAddress $HOST:22
HostKey $SCRATCH/sshd/host_key
AuthorizedKeysFile $SCRATCH/sshd/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
MaxStartups 100
CONFIG
  nsenter --net="/run/netns/$NAMESPACE" /usr/sbin/sshd -f "$SCRATCH/sshd/config" \
    -E "$SCRATCH/sshd/sshd.log"
  wait_until "sshd listens" bash -c "exec 3<>/dev/tcp/$HOST/22"
  TARGET=root@$HOST:$REPLICA
  SSH=(--identity "$SCRATCH/sshd/key" --known-hosts "$SCRATCH/sshd/known_hosts"
    --remote-path "$MIRRORFS")
}

# The replica's process over there.
remote_process() {
  local pid
  for pid in $(ip netns pids "$NAMESPACE"); do
    # The shell that starts it has the same words in one argument.
    if { tr '\0' '\n' <"/proc/$pid/cmdline"; } 2>/dev/null | sed -n 2p | grep -qx serve; then
      echo "$pid"
      return 0
    fi
  done
  return 1
}

remote_gone() { ! remote_process >/dev/null; }

# Both sides at once.
kill_both_sides() {
  local remote
  remote=$(remote_process) || remote=
  kill -KILL "$(daemon "$MOUNT")" ${remote:+"$remote"}
  wait_until "the remote side is gone" remote_gone
}

# Swallows everything, silently, as a cable does.
link_cut() {
  nsenter --net="/run/netns/$NAMESPACE" nft -f - <<'RULES'
table inet cut {
  chain in { type filter hook input priority 0; policy drop; }
  chain out { type filter hook output priority 0; policy drop; }
}
RULES
}

link_heal() { nsenter --net="/run/netns/$NAMESPACE" nft delete table inet cut; }

# Bytes of the TCP streams of the link so far, both directions, ssh included.
wire_bytes() {
  ss -tinH dst "$HOST" | tr ' ' '\n' |
    awk -F: '/^bytes_(sent|received):/ { sum += $2 } END { print sum + 0 }'
}
