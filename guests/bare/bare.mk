# Included by the top Makefile: the bare guest, rebuilt when a source changes. Package bare knows how, so that tests which
# find it missing build the same thing.
$(BUILD)/guests/bare.elf: $(wildcard guests/bare/src/*)
	go run ./guests/bare/mkbare
	@touch $@
