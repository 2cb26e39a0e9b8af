# SPDX-License-Identifier: MIT
#
# What `make install` installs, once: $(INSTALLED) has MODE|FILE|WHERE of each file and
# link|TARGET|WHERE of each symbolic link; install makes them all, uninstall removes them all.
#
# DESTDIR goes before every path. PREFIX is /usr/local; with /usr the configuration lies in /etc,
# else in PREFIX/etc. The other directories follow PREFIX and can be given one by one: a
# distribution has its own LIBDIR. RPATH is where arenactl looks for the library, none: nowhere
# but where all programs do.

PREFIX ?= /usr/local
SYSCONFDIR ?= $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/arenad
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
SYSCTLDIR ?= $(PREFIX)/lib/sysctl.d
UDEVRULESDIR ?= $(PREFIX)/lib/udev/rules.d
RPATH ?= $(if $(filter $(PREFIX)/lib,$(LIBDIR)),$$ORIGIN/../lib,$(LIBDIR))

# ---- what is written for the directories of this installation ----

S := $(B)/share

# Changes when the directories do.
$(S)/directories: FORCE
	@mkdir -p $(@D)
	@echo '$(BINDIR) $(SYSCONFDIR) $(LIBDIR) $(INCLUDEDIR) $(RPATH) $(VERSION)' | cmp -s - $@ || \
		echo '$(BINDIR) $(SYSCONFDIR) $(LIBDIR) $(INCLUDEDIR) $(RPATH) $(VERSION)' > $@

$(B)/bin/config_text: $(B)/obj/build-aux/config_text.o $(call room_libs,machine)
	$(call link,,$(LIBS))

$(S)/arenad.conf: $(B)/bin/config_text
	@mkdir -p $(@D)
	$(Q)$< conf > $@

$(S)/%.service: systemd/%.service $(S)/directories
	$(Q)sed -e 's|/usr/bin/|$(BINDIR)/|g' -e 's|/etc/arenad/|$(SYSCONFDIR)/arenad/|g' $< > $@

$(S)/libarena.pc: $(S)/directories
	$(Q)echo "$$pkgconfig" > $@

# Pages with a line @OPTIONS@, @KEYS@ or @HELP@ get there what the programs themselves say.
$(S)/options: $(B)/bin/config_text
	@mkdir -p $(@D)
	$(Q)$< options > $@
$(S)/keys: $(B)/bin/config_text
	@mkdir -p $(@D)
	$(Q)$< keys > $@
$(S)/help: $(B)/bin/arenactl | $(LIBARENA_SO)
	@mkdir -p $(@D)
	$(Q)$< --help | sed 's/\\/\\e/g; s/-/\\-/g; s/^\([.'\'']\)/\\\&\1/' > $@
$(S)/man/%: man/% $(S)/options $(S)/keys $(S)/help $(S)/directories
	@mkdir -p $(@D)
	$(Q)sed -e 's|@VERSION@|$(VERSION)|; s|@SYSCONFDIR@|$(SYSCONFDIR)|' \
		-e '/^@OPTIONS@$$/{r $(S)/options' -e 'd}' -e '/^@KEYS@$$/{r $(S)/keys' -e 'd}' \
		-e '/^@HELP@$$/{r $(S)/help' -e 'd}' $< > $@

# arenactl of the build finds the library of the build.
$(S)/arenactl: $(SRC_arenactl:%.c=$(B)/obj/%.o) $(LIB_base) $(S)/directories | $(LIBARENA_SO)
	$(call link,-L$(B)/lib $(if $(filter-out none,$(RPATH)),-Wl$(comma)-rpath$(comma)'$(RPATH)'),-larena)

define pkgconfig
prefix=$(PREFIX)
libdir=$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))
includedir=$(patsubst $(PREFIX)/%,$${prefix}/%,$(INCLUDEDIR))

Name: libarena
Description: client library of arenad, memory management as a user-space service
Version: $(VERSION)
Cflags: -I$${includedir}
Libs: -L$${libdir} -larena
Libs.private: -lprotobuf-c -pthread
endef
export pkgconfig

# ---- the list ----

CONF_AS_SHIPPED = $(DOCDIR)/examples/arenad.conf
DOCS = README.md LICENSE $(wildcard docs/*.md)
INSTALLED = \
	755|$(B)/bin/arenad|$(BINDIR)/arenad \
	755|$(S)/arenactl|$(BINDIR)/arenactl \
	755|$(B)/lib/libarena.so.$(VERSION)|$(LIBDIR)/libarena.so.$(VERSION) \
	link|libarena.so.$(VERSION)|$(LIBDIR)/$(SONAME) \
	link|$(SONAME)|$(LIBDIR)/libarena.so \
	$(if $(LIBARENA_PRELOAD),755|$(B)/lib/libarena-preload.so|$(LIBDIR)/libarena-preload.so) \
	644|$(B)/lib/libarena.a|$(LIBDIR)/libarena.a \
	644|$(S)/libarena.pc|$(LIBDIR)/pkgconfig/libarena.pc \
	644|include/arena/arena.h|$(INCLUDEDIR)/arena/arena.h \
	644|$(S)/arenad.service|$(UNITDIR)/arenad.service \
	644|systemd/arenad.socket|$(UNITDIR)/arenad.socket \
	644|systemd/arenad.sysusers|$(SYSUSERSDIR)/arenad.conf \
	644|systemd/arenad.tmpfiles|$(TMPFILESDIR)/arenad.conf \
	644|systemd/arenad.sysctl|$(SYSCTLDIR)/60-arenad.conf \
	644|systemd/arenad.rules|$(UDEVRULESDIR)/60-arenad.rules \
	conf|$(S)/arenad.conf|$(SYSCONFDIR)/arenad/arenad.conf \
	644|$(S)/arenad.conf|$(CONF_AS_SHIPPED) \
	644|$(S)/man/arenad.8|$(MANDIR)/man8/arenad.8 \
	644|$(S)/man/arenactl.1|$(MANDIR)/man1/arenactl.1 \
	644|$(S)/man/arenad.conf.5|$(MANDIR)/man5/arenad.conf.5 \
	$(foreach d,$(DOCS),644|$(d)|$(DOCDIR)/$(notdir $(d)))

field = $(word $(1),$(subst |, ,$(2)))
# What has to be there before it can be installed.
INSTALL_MADE = $(sort $(foreach i,$(INSTALLED),$(filter $(B)/%,$(call field,2,$(i)))))
STAGING = $(filter-out /,$(DESTDIR))
# Directories that are ours alone. In a staging directory all of them are.
OWN_DIRECTORIES = $(DOCDIR)/examples $(DOCDIR) $(INCLUDEDIR)/arena $(SYSCONFDIR)/arenad
ALL_DIRECTORIES = $(sort $(foreach i,$(INSTALLED),$(patsubst %/,%,$(dir $(call field,3,$(i))))))

all: $(INSTALL_MADE)

# A configuration that is not as it was shipped stays, at install and at uninstall.
install: all
	@set -e; for i in $(foreach i,$(INSTALLED),'$(i)'); do \
		IFS='|'; set -- $$i; unset IFS; to='$(DESTDIR)'$$3; \
		mkdir -p "$${to%/*}"; \
		case $$1 in \
		link) ln -sf "$$2" "$$to" ;; \
		conf) if test -e "$$to" && ! cmp -s '$(DESTDIR)$(CONF_AS_SHIPPED)' "$$to"; then \
				echo "kept $$to, which was changed"; continue; \
			fi; install -m 644 "$$2" "$$to" ;; \
		*) install -m "$$1" "$$2" "$$to" ;; \
		esac; \
		echo "installed $$to"; \
	done
	@# Programs find a new library below /usr/local only after this; a package has its own way.
	@if test -z "$(STAGING)" && test "$$(id -u)" -eq 0; then PATH="$$PATH:/sbin" ldconfig; \
		echo 'For the service: systemd-sysusers; systemd-tmpfiles --create;' \
			'systemctl daemon-reload; systemctl enable --now arenad.socket'; fi

uninstall:
	@set -e; for i in $(foreach i,$(INSTALLED),'$(i)'); do \
		IFS='|'; set -- $$i; unset IFS; to='$(DESTDIR)'$$3; \
		if test "$$1" = conf && test -e "$$to" && \
				! cmp -s '$(DESTDIR)$(CONF_AS_SHIPPED)' "$$to"; then \
			echo "left $$to, which was changed"; \
		elif test -e "$$to" || test -L "$$to"; then \
			rm -f "$$to"; echo "removed $$to"; \
		fi; \
	done
	@test ! -d '$(or $(DESTDIR),/)' || { cd '$(or $(DESTDIR),/)' && \
		for d in $(patsubst /%,%,$(OWN_DIRECTORIES) $(if $(STAGING),$(ALL_DIRECTORIES))); do \
			test ! -d "$$d" || rmdir $(if $(STAGING),-p) --ignore-fail-on-non-empty "$$d"; \
		done; }

# The test that reads it.
$(B)/tests/unit_machine_conffile: | $(S)/arenad.conf
