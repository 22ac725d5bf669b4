# Runs one case: one.sh FILE CASE, with SCRATCH as its directory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/mounted/lib/common.sh
. "$here/common.sh"
# shellcheck source=tests/mounted/lib/host.sh
. "$here/host.sh"
# shellcheck source=tests/mounted/lib/load.sh
. "$here/load.sh"
# shellcheck source=/dev/null
. "$1"
cd "$SCRATCH"
trap 'echo "failed in ${FUNCNAME[0]:-main}, ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR
"case_$2"
