package nfnetlink

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/testnet"
)

// What was built reads back the same.
func TestAttributes(t *testing.T) {
	var b []byte
	b = AppendString(b, 1, "name")
	b = AppendUint32(b, 2, 0x01020304)
	outer := len(b)
	b = AppendNest(b, 3)
	b = AppendAttr(b, 4, []byte{1, 2, 3})
	b = AppendAttr(b, 5, nil)
	EndNest(b, outer)
	b = AppendAttr(b, 6, []byte{9})
	var got []string
	var read func(prefix string, b []byte)
	read = func(prefix string, b []byte) {
		Attributes(b, func(typ uint16, v []byte) {
			got = append(got, prefix+string(rune('0'+typ))+":"+string(v))
			if typ == 3 {
				read("3.", v)
			}
		})
	}
	read("", b)
	want := []string{"1:name\x00", "2:\x01\x02\x03\x04", "3:" + string(b[outer+4:outer+16]), "3.4:\x01\x02\x03", "3.5:", "6:\x09"}
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}
}

func TestParseError(t *testing.T) {
	answer := Native.AppendUint32(nil, 0)
	answer = append(answer, make([]byte, unix.SizeofNlMsghdr)...)
	if err := parseError(answer); err != nil {
		t.Errorf("an acknowledgement: %v", err)
	}
	no := int32(-int32(unix.EBUSY))
	answer = Native.AppendUint32(nil, uint32(no))
	answer = append(answer, make([]byte, unix.SizeofNlMsghdr)...)
	answer = AppendString(answer, unix.NLMSGERR_ATTR_MSG, "chain is in use")
	err := parseError(answer)
	if !errors.Is(err, unix.EBUSY) || err.Error() != unix.EBUSY.Error()+": chain is in use" {
		t.Errorf("got %v", err)
	}
}

// A real refusal, and after it a real success on the same socket.
func TestCommit(t *testing.T) {
	space := testnet.New(t, "netlink")
	var c *Conn
	space.Do(func() {
		var err error
		if c, err = Dial(); err != nil {
			t.Fatal(err)
		}
	})
	defer c.Close()
	const newTable, delTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	table := func(typ uint16, name string) error {
		var b Batch
		b.Reset(unix.NFPROTO_IPV4, c)
		b.Start(typ, unix.NLM_F_CREATE)
		b.String(unix.NFTA_TABLE_NAME, name)
		b.End()
		return c.Commit(&b)
	}
	for range 3 {
		if err := table(delTable, "none"); !errors.Is(err, unix.ENOENT) {
			t.Errorf("deleting what is not there: %v", err)
		}
		if err := table(newTable, "some"); err != nil {
			t.Error(err)
		}
	}
	var empty Batch
	empty.Reset(unix.NFPROTO_IPV4, c)
	if err := c.Commit(&empty); err != nil {
		t.Errorf("an empty transaction: %v", err)
	}
	var names []string
	err := c.Dump(unix.NFPROTO_IPV4, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, nil, func() { names = nil }, func(b []byte) {
		Attributes(b, func(typ uint16, v []byte) {
			if typ == unix.NFTA_TABLE_NAME {
				names = append(names, string(bytes.TrimRight(v, "\x00")))
			}
		})
	})
	if err != nil || len(names) != 1 || names[0] != "some" {
		t.Errorf("listed %q, %v", names, err)
	}
}

// Whatever comes, reading it ends.
func FuzzMessages(f *testing.F) {
	var b Batch
	b.Start(1, 0)
	b.String(1, "x")
	b.End()
	f.Add(b.Buf)
	f.Add([]byte{20, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = messages(data, func(_ uint16, _ uint32, p []byte) error {
			_ = parseError(p)
			Attributes(p, func(_ uint16, v []byte) { Attributes(v, func(uint16, []byte) {}) })
			return nil
		})
	})
}
