package linux

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// elfModule is a relocatable object with nothing but a section .modinfo, as the assembler and linker would make it:
// a 64-byte header, the content, the section names, and three section headers (null, .modinfo, .shstrtab).
func elfModule(depends string) []byte {
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	le := func(b []byte, at int, v uint64, n int) {
		for i := range n {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le(b, 16, 1, 2)                               // relocatable
	le(b, 18, 62, 2)                              // x86-64
	le(b, 20, 1, 4)                               // version
	le(b, 40, uint64(64+len(info)+len(names)), 8) // section headers
	le(b, 52, 64, 2)                              // size of this header
	le(b, 58, 64, 2)                              // size of a section header
	le(b, 60, 3, 2)                               // section headers
	le(b, 62, 2, 2)                               // the one with the names
	all := slices.Concat(b, []byte(info), []byte(names))
	section := func(name, kind, offset, size int) {
		h := make([]byte, 64)
		le(h, 0, uint64(name), 4)
		le(h, 4, uint64(kind), 4)
		le(h, 24, uint64(offset), 8)
		le(h, 32, uint64(size), 8)
		all = append(all, h...)
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	return all
}

// moduleTree makes a directory of modules in all the packings: ring needs core, net needs ring and core.
func moduleTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		name = filepath.Join(dir, "kernel", "drivers", name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, b, 0o600))
	}
	write("core.ko", elfModule(""))
	z, err := zstd.NewWriter(nil)
	must(t, err)
	write("v/ring.ko.zst", z.EncodeAll(elfModule("core"), nil))
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, err = w.Write(elfModule("ring,core"))
	must(t, err)
	must(t, w.Close())
	write("v/my-net.ko.gz", gz.Bytes())
	xz := exec.Command("xz", "--stdout")
	xz.Stdin = bytes.NewReader(elfModule("core"))
	packed, err := xz.Output()
	must(t, err)
	write("disk.ko.xz", packed)
	write("lonely.ko", elfModule("missing"))
	write("a.ko", elfModule("b"))
	write("b.ko", elfModule("a"))
	write("broken.ko", []byte("not an ELF file"))
	write("cut.ko.xz", packed[:len(packed)/2])
	return dir
}

func TestModuleClosure(t *testing.T) {
	set, err := findModules(moduleTree(t))
	must(t, err)
	got, err := set.closure(t.Context(), []string{"my-net", "disk", "core"})
	must(t, err)
	var order []string
	for _, m := range got {
		order = append(order, m.name)
		if !bytes.HasPrefix(m.content, []byte("\x7fELF")) {
			t.Errorf("%s is not unpacked", m.name)
		}
	}
	if want := []string{"core", "ring", "my_net", "disk"}; !slices.Equal(order, want) {
		t.Errorf("order is %v, want %v", order, want)
	}
	if want := []string{"core", "ring"}; !slices.Equal(got[2].all, want) {
		t.Errorf("my_net needs %v, want %v", got[2].all, want)
	}
	for name, says := range map[string]string{
		"nothing": "no module nothing", "lonely": "which lonely needs", "a": "need each other", "broken": "broken.ko", "cut": "xz",
	} {
		if _, err := set.closure(t.Context(), []string{name}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := findModules(t.TempDir()); err == nil {
		t.Error("an empty directory has modules")
	}
	if _, err := findModules("/no/such/directory"); err == nil {
		t.Error("a missing directory has modules")
	}
}

func testOptions(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	binary, tool := filepath.Join(dir, "init"), filepath.Join(dir, "tool")
	must(t, os.WriteFile(binary, []byte("the init program"), 0o600))
	must(t, os.WriteFile(tool, []byte("a tool"), 0o755))
	return Options{
		Modules: moduleTree(t), ModuleNames: []string{"my_net", "disk"}, InitBinary: binary,
		ExtraFiles: map[string]string{"/bin/sub/tool": tool}, Out: filepath.Join(dir, "new", "initramfs"),
	}
}

func TestInitramfs(t *testing.T) {
	o := testOptions(t)
	must(t, BuildInitramfs(t.Context(), o))
	first, err := os.ReadFile(o.Out)
	must(t, err)
	must(t, BuildInitramfs(t.Context(), o))
	second, err := os.ReadFile(o.Out)
	must(t, err)
	if sha256.Sum256(first) != sha256.Sum256(second) {
		t.Error("the same inputs give different bytes")
	}
	// An independent reader: what the kernel would find.
	entries := map[string]string{}
	cmd := exec.Command("sh", "-c", "zstd -dc | cpio -i --quiet --make-directories --no-absolute-filenames 2>&1 && find . -printf '%y %m %P\\n'")
	if _, err := exec.LookPath("cpio"); err == nil {
		cmd.Dir = t.TempDir()
		cmd.Stdin = bytes.NewReader(first)
		out, err := cmd.CombinedOutput()
		must(t, err)
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) == 3 {
				entries[f[2]] = f[0] + f[1]
			}
		}
	} else {
		all, err := o.entries(t.Context())
		must(t, err)
		for _, e := range all {
			kind := "f"
			if e.data == nil {
				kind = "d"
			}
			entries[e.name] = kind + e.mode.Perm().String()
		}
		t.Log("cpio is not installed; only the builder's own reader has seen the archive")
	}
	for _, name := range []string{"init", "bin/sub/tool", "lib/modules/core.ko", "lib/modules/my_net.ko", "lib/modules/modules.dep", "lib/modules/load", "dev"} {
		if entries[name] == "" {
			t.Errorf("no %s in the archive: %v", name, entries)
		}
	}
}

func TestInitramfsLists(t *testing.T) {
	o := testOptions(t)
	all, err := o.entries(t.Context())
	must(t, err)
	content := map[string]string{}
	for _, e := range all {
		content[e.name] = string(e.data)
	}
	if got, want := content["lib/modules/modules.dep"], "core.ko:\nring.ko: core.ko\nmy_net.ko: ring.ko core.ko\ndisk.ko: core.ko\n"; got != want {
		t.Errorf("modules.dep is %q, want %q", got, want)
	}
	if got := content["lib/modules/load"]; got != "my_net\ndisk\n" {
		t.Errorf("the list to load is %q", got)
	}
}

func TestInitramfsErrors(t *testing.T) {
	tests := map[string]func(*Options){
		"no init":             func(o *Options) { o.InitBinary += "x" },
		"no modules":          func(o *Options) { o.Modules = t.TempDir() },
		"unknown module":      func(o *Options) { o.ModuleNames = []string{"nothing"} },
		"no extra file":       func(o *Options) { o.ExtraFiles = map[string]string{"/x": "/no/such/file"} },
		"extra file is init":  func(o *Options) { o.ExtraFiles = map[string]string{"/../init": o.InitBinary} },
		"extra file is root":  func(o *Options) { o.ExtraFiles = map[string]string{"/": o.InitBinary} },
		"out is a directory":  func(o *Options) { o.Out = filepath.Dir(o.InitBinary) },
		"out is below a file": func(o *Options) { o.Out = filepath.Join(o.InitBinary, "x") },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			change(&o)
			err := BuildInitramfs(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), o.Out) {
				t.Errorf("error is %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Out), ".new-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestVerifySeesDamage(t *testing.T) {
	entries := []entry{{"a", 0o100644, []byte("12345")}, {"b", 0o40755, nil}}
	packed, err := pack(entries)
	must(t, err)
	must(t, verify(packed, entries))
	for name, wrong := range map[string][]entry{
		"content": {{"a", 0o100644, []byte("12346")}, entries[1]},
		"mode":    {{"a", 0o100755, []byte("12345")}, entries[1]},
		"name":    {{"c", 0o100644, []byte("12345")}, entries[1]},
		"fewer":   entries[:1],
		"more":    append(slices.Clone(entries), entry{"c", 0o100644, nil}),
	} {
		if err := verify(packed, wrong); err == nil {
			t.Errorf("other %s is not seen", name)
		}
	}
	if err := verify(packed[:len(packed)-5], entries); err == nil {
		t.Error("a cut archive is not seen")
	}
}

func TestKernelCache(t *testing.T) {
	cache := t.TempDir()
	k, err := Gokrazy(t.Context(), cache)
	must(t, err)
	must(t, checkFile(k.Image, gokrazySHA256))
	// Without anything to download from, the cache has it.
	t.Setenv("PATH", "")
	k, err = Gokrazy(t.Context(), cache)
	must(t, err)
	// A damaged copy is not used.
	must(t, os.WriteFile(k.Image, []byte("damaged"), 0o600))
	if _, err := Gokrazy(t.Context(), cache); err == nil || !strings.Contains(err.Error(), "go is not installed") {
		t.Errorf("damaged, and no go: %v", err)
	}
	if _, err := Debian(t.Context(), cache); err == nil || !strings.Contains(err.Error(), "this is no Debian") {
		t.Errorf("no apt: %v", err)
	}
	if _, err := Find(t.Context(), "plan9", cache); err == nil {
		t.Error("an unknown kernel is found")
	}
}

func TestDebianCache(t *testing.T) {
	cache := t.TempDir()
	write := func(dir, manifest, image string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(cache, dir), 0o755))
		must(t, os.WriteFile(filepath.Join(cache, dir, manifestName), []byte(manifest), 0o600))
		must(t, os.WriteFile(filepath.Join(cache, dir, "vmlinuz"), []byte(image), 0o600))
	}
	const sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // of "abc", FIPS 180-2
	write("debian-1", `{"package":"p","version":"1","sha256":"`+sum+`"}`, "damaged")
	write("debian-2", `not JSON`, "abc")
	if _, err := cachedDebian(cache); err == nil {
		t.Error("a damaged kernel is used")
	}
	write("debian-3", `{"package":"p","version":"3","sha256":"`+sum+`"}`, "abc")
	k, err := Debian(context.Background(), cache)
	must(t, err)
	if k.Version != "3" || k.Image != filepath.Join(cache, "debian-3", "vmlinuz") || k.Modules == "" {
		t.Errorf("kernel is %+v", k)
	}
}

func TestDependsLine(t *testing.T) {
	show := "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: x\n"
	if f := dependsLine.FindStringSubmatch(show); f == nil || f[1] != "linux-image-6.1.0-56-cloud-amd64" || f[2] != "6.1.192-2" {
		t.Errorf("found %v", f)
	}
}
