package dns

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// oddMessage is a message that no resolver sends.
type oddMessage struct {
	name string
	wire []byte
}

// header of a query: ID, flags and the four counts.
func header(flags uint16, counts ...uint16) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x12, 0x34}, flags)
	for i := range 4 {
		var n uint16
		if i < len(counts) {
			n = counts[i]
		}
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

// labels packs a name of labels, as they are.
func labels(l ...string) []byte {
	var b []byte
	for _, s := range l {
		b = append(append(b, byte(len(s))), s...)
	}
	return append(b, 0)
}

func oddMessages() []oddMessage {
	const rd = 0x0100
	web := labels("web", "prod", "svc", "cluster", "local")
	inA := []byte{0, 1, 0, 1}
	question := append(bytes.Clone(web), inA...)
	opt := []byte{0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0}
	a := append(bytes.Clone(web), 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	many := func(n int, label string) []string {
		var l []string
		for range n {
			l = append(l, label)
		}
		return l
	}
	l63 := strings.Repeat("x", 63)
	in := func(l ...string) []byte { return join(labels(l...), inA) }
	below := func(l ...string) []byte { return in(append(l, "prod", "svc", "cluster", "local")...) }
	return []oddMessage{
		{"only an ID", []byte{0x12, 0x34}},
		{"eleven bytes", header(rd, 1)[:11]},
		{"a response", join(header(0x8100, 1), question)},
		{"no question, count 0", header(rd)},
		{"no question, count 1", header(rd, 1)},
		{"two questions", join(header(rd, 2), question, question)},
		{"three questions", join(header(rd, 3), question, question, question)},
		{"count 2, one question", join(header(rd, 2), question)},
		{"an answer", join(header(rd, 1, 1), question, a)},
		{"two answers", join(header(rd, 1, 2), question, a, a)},
		{"an authority record", join(header(rd, 1, 0, 1), question, a)},
		{"two authority records", join(header(rd, 1, 0, 2), question, a, a)},
		{"an additional record", join(header(rd, 1, 0, 0, 1), question, a)},
		{"OPT and an additional record", join(header(rd, 1, 0, 0, 2), question, opt, a)},
		{"three additional records", join(header(rd, 1, 0, 0, 3), question, a, a, opt)},
		{"two OPT", join(header(rd, 1, 0, 0, 2), question, opt, opt)},
		{"two OPT, sizes 512 and 1232", join(header(rd, 1, 0, 0, 2), question, []byte{0, 0, 41, 2, 0, 0, 0, 0, 0, 0, 0}, opt)},
		{"OPT as answer", join(header(rd, 1, 1), question, opt)},
		{"OPT as authority", join(header(rd, 1, 0, 1), question, opt)},
		{"OPT not of the root", join(header(rd, 1, 0, 0, 1), question, []byte{1, 'x'}, opt)},
		{"OPT option longer than its data", join(header(rd, 1, 0, 0, 1), question, opt[:9], []byte{0, 4, 0, 3, 0, 9})},
		{"OPT data longer than the message", join(header(rd, 1, 0, 0, 1), question, opt[:9], []byte{0, 9})},
		{"OPT with half an option", join(header(rd, 1, 0, 0, 1), question, opt[:9], []byte{0, 2, 0, 3})},
		{"OPT with an ECS of no family", join(header(rd, 1, 0, 0, 1), question, opt[:9], []byte{0, 8, 0, 8, 0, 4, 0, 9, 24, 0})},
		{"OPT with an empty ECS", join(header(rd, 1, 0, 0, 1), question, opt[:9], []byte{0, 4, 0, 8, 0, 0})},
		{"answer count 1, none there", join(header(rd, 1, 1), question)},
		{"additional count 1, none there", join(header(rd, 1, 0, 0, 1), question)},
		{"half a record", join(header(rd, 1, 0, 0, 1), question, a[:len(a)-3])},
		{"trailing bytes", join(header(rd, 1), question, []byte("trailing"))},
		{"rcode set", join(header(rd|5, 1), question)},
		{"aa, tc, ra set", join(header(rd|0x0680, 1), question)},
		{"question without class", join(header(rd, 1), web, []byte{0, 1})},
		{"question without type", join(header(rd, 1), web)},
		{"half a type", join(header(rd, 1), web, []byte{0})},
		{"half a class", join(header(rd, 1), web, []byte{0, 1, 0})},
		{"name without root", join(header(rd, 1), web[:len(web)-1])},
		{"name cut in a label", join(header(rd, 1), web[:6])},
		{"class 0", join(header(rd, 1), web, []byte{0, 1, 0, 0})},
		{"class 65535", join(header(rd, 1), web, []byte{0, 1, 255, 255})},
		{"pointer to itself", join(header(rd, 1), []byte{0xc0, 12}, inA)},
		{"pointer into the header", join(header(rd, 1), []byte{3, 'w', 'e', 'b', 0xc0, 0}, inA)},
		{"pointers to each other", join(header(rd, 1), []byte{0xc0, 14, 0xc0, 12}, inA)},
		{"pointer forward", join(header(rd, 1), []byte{0xc0, 20}, inA, web)},
		{"pointer past the end", join(header(rd, 1), []byte{0xff, 0xff}, inA)},
		{"half a pointer", join(header(rd, 1), []byte{0xc0})},
		{"reserved label type 01", join(header(rd, 1), []byte{0x41, 'x', 0}, inA)},
		{"reserved label type 10", join(header(rd, 1), []byte{0x81, 'x', 0}, inA)},
		{"the root", join(header(rd, 1), []byte{0}, inA)},
		{"label of 63", join(header(rd, 1), below(l63))},
		{"name of 253", join(header(rd, 1), below(l63, l63, l63, strings.Repeat("y", 253-3*64-23)))},
		{"name of 255", join(header(rd, 1), below(l63, l63, l63, strings.Repeat("y", 255-3*64-25)))},
		{"name of 256", join(header(rd, 1), below(l63, l63, l63, strings.Repeat("y", 256-3*64-25)))},
		{"name of 300", join(header(rd, 1), below(l63, l63, l63, l63))},
		{"a hundred labels", join(header(rd, 1), below(many(100, "x")...))},
		{"127 labels", join(header(rd, 1), in(many(127, "x")...))},
		{"label with a dot", join(header(rd, 1), below("we.b"))},
		{"label with a space", join(header(rd, 1), below("we b"))},
		{"label with NUL", join(header(rd, 1), below("we\x00b"))},
		{"label of eight bits", join(header(rd, 1), below("w\xe9b\xff"))},
		{"label with a backslash", join(header(rd, 1), below(`we\b`))},
		{"label with quotes", join(header(rd, 1), below(`"web"`))},
		{"label with a semicolon and brackets", join(header(rd, 1), below("we;(b)@$"))},
		{"dots in a name that is there", join(header(rd, 1), in("web.prod", "svc", "cluster", "local"))},
		{"dots in the zone", join(header(rd, 1), in("web", "prod", "svc", "cluster.local"))},
		{"capital letters", join(header(rd, 1), in("WEB", "Prod", "sVC", "cLUSTER", "LOCAL"))},
		{"IQUERY", join(header(rd|1<<11, 1), question)},
		{"STATUS without question", header(rd | 2<<11)},
		{"opcode 3", join(header(rd|3<<11, 1), question)},
		{"NOTIFY without question", header(4 << 11)},
		{"UPDATE", join(header(5<<11, 1), web, []byte{0, 6, 0, 1})},
		{"UPDATE with records", join(header(5<<11, 1, 0, 3, 1), web, []byte{0, 6, 0, 1}, a, a, a, opt)},
		{"DSO", header(6 << 11)},
		{"opcode 15 without question", header(15 << 11)},
		{"opcode 15, two questions", join(header(15<<11, 2), question, question)},
	}
}
