# Sourced by the other scripts, from the root of the repository: leaves in $PYTHON an interpreter that has the project's dependencies.
#   PYTHON set by the caller        taken as it is
#   an active virtualenv or conda   taken when it has the dependencies
#   otherwise                       .venv: made once, brought up to date whenever pyproject.toml or constraints.txt change
# EXTRA=dev asks for what tests, lint and types need as well; any other extra of pyproject.toml can be named in the same way.

# Names on standard error what the interpreter $1 lacks of the project's dependencies (and those of the extra $2).
has_dependencies() {
    "$1" - "$2" <<'EOF'
import sys, tomllib
from importlib.metadata import PackageNotFoundError, version
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("the active environment lacks all of the project's dependencies")
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
lacking = []
for line in project["dependencies"] + project["optional-dependencies"].get(sys.argv[1], []):
    wanted = Requirement(line)
    try:
        if not wanted.specifier.contains(version(wanted.name), prereleases=True):
            lacking.append(line)
    except PackageNotFoundError:
        lacking.append(line)
if lacking:
    sys.exit("the active environment lacks " + ", ".join(lacking))
EOF
}

# Prints the first interpreter that is new enough.
find_python() {
    for candidate in python3 python3.12 python3.11 python3.13 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer on PATH; install one, or name it: PYTHON=/path/to/python" >&2
    return 1
}

EXTRA=${EXTRA:-}
if [ -z "${PYTHON:-}" ] && [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] && has_dependencies python "$EXTRA"; then
    PYTHON=python
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$PWD/.venv/bin/python
    stamp=$(cat pyproject.toml constraints.txt | cksum)
    if [ "$stamp" != "$(cat ".venv/stamp$EXTRA" 2>/dev/null)" ]; then
        echo "installing into .venv (once; a few minutes)" >&2
        builder=$(find_python) || exit 1
        "$builder" -m venv .venv && "$PYTHON" -m pip install --quiet --no-compile -e ".${EXTRA:+[$EXTRA]}" -c constraints.txt || exit 1
        "$PYTHON" -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || : # on all cores, where pip uses one; templates among the files fail
        echo "$stamp" >.venv/stamp
        echo "$stamp" >".venv/stamp$EXTRA"
    fi
fi
export PYTHON
