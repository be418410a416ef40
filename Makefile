# A thin front for CMake: `make run` and `make test` work on a bare Debian 12 with make, git and ca-certificates.
.DEFAULT_GOAL := build
.PHONY: run test build cuda configure format clean

BUILD := build/release
JOBS := $(shell nproc)

configure:
	@tools/install_deps.sh
	@mkdir -p build && cmake --preset release >build/configure.log 2>&1 || (cat build/configure.log; exit 1)

# The program: build/release/bin/calandra
build: configure
	@cmake --build --preset release -j $(JOBS) --target calandra

# The program, and beside it the plug-in for GPUs: build/release/bin/libcalandra_cuda.so
cuda:
	@tools/install_deps.sh
	@mkdir -p build && nvcc=$$(tools/install_cuda.sh) && \
	  (CUDACXX=$$nvcc cmake --preset cuda >build/configure.log 2>&1 || (cat build/configure.log; exit 1))
	@cmake --build --preset cuda -j $(JOBS) --target calandra calandra_cuda_plugin

# Builds, then lets the demo model answer.
run: build
	@echo
	@echo '$$ $(BUILD)/bin/calandra generate --temperature 0 "What does \"ancient\" mean?"'
	@$(BUILD)/bin/calandra generate --temperature 0 'What does "ancient" mean?'
	@echo
	@echo 'More to try:'
	@echo '  $(BUILD)/bin/calandra chat                 a conversation in the terminal'
	@echo '  $(BUILD)/bin/calandra inspect              what the model is made of and how much memory it takes'
	@echo '  $(BUILD)/bin/calandra eval --text FILE     perplexity of a text'

# Builds and runs every test but those labelled `long`.
test: configure
	@cmake --build --preset release -j $(JOBS)
	@python3 tools/run_tests.py $(BUILD) -LE long

format:
	@tools/install_deps.sh --tests
	@tools/check_files.py --fix

clean:
	@rm -rf build
