# install PACKAGE: installs a Debian package; needs root.
# unpack PACKAGE DIRECTORY: unpacks a package without installing it, for those that would start a service.
set -eu
export DEBIAN_FRONTEND=noninteractive
case $1 in
install)
    apt-get -qq update
    # Keeps PostgreSQL's package from making and starting a cluster: only the programs are wanted.
    guard=/etc/postgresql-common/createcluster.d/muster.conf
    mkdir -p "${guard%/*}"
    trap 'rm -f "$guard"' EXIT
    echo 'create_main_cluster = false' >"$guard"
    apt-get -qq install -y --no-install-recommends "$2" >&2
    ;;
unpack)
    cd "$3"
    # The lists of packages may be missing or old; only root may renew them.
    apt-get -qq download "$2" || {
        if [ "$(id -u)" = 0 ]; then apt-get -qq update; else sudo -n apt-get -qq update; fi
        apt-get -qq download "$2"
    }
    dpkg-deb --extract "$2"_*.deb unpacked
    ;;
esac
