package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

const (
	kernelVersionAt = 0x20e // a pointer, less 0x200, to what the kernel calls itself
	maxVersionText  = 256
)

// LinuxVersion is what a bzImage calls itself, such as "Linux 7.1.2", by its setup header's kernel_version (Linux boot protocol,
// 2.00 on). A kernel that doesn't say is "Linux". Errors wrap ErrNotKernel or what the file system says.
func LinuxVersion(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("version of kernel: %w", err)
	}
	defer f.Close()
	name, err := linuxVersion(f)
	if err != nil {
		return "", fmt.Errorf("version of kernel %s: %w", path, err)
	}
	return name, nil
}

func linuxVersion(kernel io.ReaderAt) (string, error) {
	var header [kernelVersionAt + 2]byte
	if _, err := kernel.ReadAt(header[:], 0); err != nil || string(header[setupMagicAt:][:len(setupMagic)]) != setupMagic {
		return "", fmt.Errorf("%w: no bzImage", ErrNotKernel)
	}
	pointer := binary.LittleEndian.Uint16(header[kernelVersionAt:])
	if pointer == 0 {
		return "Linux", nil
	}
	text := make([]byte, maxVersionText)
	n, err := kernel.ReadAt(text, int64(pointer)+0x200)
	if n == 0 {
		return "", fmt.Errorf("%w: its version is not in the file: %w", ErrNotKernel, err)
	}
	text, _, _ = bytes.Cut(text[:n], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	for _, c := range []byte(release) {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("%w: its version %q is no text", ErrNotKernel, release)
		}
	}
	return "Linux " + release, nil
}
