#!/bin/sh
# mmdebstrap's extract hook: $1 is the root of the new base. Removes what nothing in a sandbox uses.
# (mmdebstrap removes apt's and dpkg's own state after this, and needs it until then.)
set -eu

cd "$1"
find usr/share/doc -type f ! -name copyright -delete
find usr/share/doc -type d -empty -delete
rm -rf usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/perl5 usr/share/debconf usr/share/bug \
  usr/share/bash-completion usr/share/pixmaps usr/share/applications usr/lib/*/gconv \
  usr/bin/dpkg* usr/sbin/dpkg* usr/lib/dpkg usr/share/dpkg \
  etc/cron* etc/logrotate.d lib32 libx32
ln -sf mawk usr/bin/awk
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
