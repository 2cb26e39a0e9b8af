#!/bin/bash
# SPDX-License-Identifier: MIT
# Format, static analysis, the include order of the rooms, and scripts. All run; 1 if any found something.
set -u
cd "$(dirname "$0")/.." || exit 2

mapfile -t files < <(git ls-files --cached --others --exclude-standard -- '*.c' '*.h')
mapfile -t sources < <(printf '%s\n' "${files[@]}" | grep '\.c$' | grep -v '^fuzz/')
bad=0

echo "lint: clang-format"
clang-format --dry-run -Werror "${files[@]}" || bad=1

# What is not reported: system headers, which are not read; uninitialized variables, because the
# loop macros of those headers set what cppcheck then takes for unset, and gcc sees it right; leaks,
# because it does not know the cleanup attribute, and the sanitizers do.
echo "lint: cppcheck"
cppcheck --quiet --error-exitcode=1 --std=c11 --language=c -j 2 --inline-suppr \
	--enable=warning,performance,portability -D_GNU_SOURCE -D__x86_64__ -D__LP64__ \
	-I include -I . --suppress=missingInclude --suppress=missingIncludeSystem \
	--suppress=unknownMacro --suppress=uninitvar --suppress=resourceLeak --suppress=memleak \
	--suppress=preprocessorErrorDirective "${sources[@]}" || bad=1

echo "lint: include order"
build-aux/include-order.sh || bad=1
echo "lint: shellcheck"
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard -- '*.sh' '*.bash')
shellcheck --external-sources --severity=warning "${scripts[@]}" || bad=1
exit "$bad"
