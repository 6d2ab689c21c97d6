package proxy

var static = []scenario{
	{name: "none", service: "lb external", endpoints: "", paths: []path{
		{how: "ask", from: "ca", protos: "tcp", to: "cluster", want: "refused"},
		{how: "ask", from: "a1", protos: "tcp", to: "cluster", want: "refused"},
		{how: "ask", from: "cb", protos: "tcp", to: "cluster", want: "refused"},
		{how: "ask", from: "n1", protos: "tcp", to: "cluster", want: "refused"},
		{how: "ask", from: "out", protos: "tcp", to: "cluster", want: "refused"},
		{how: "ask", from: "out", protos: "tcp", to: "vip", want: "refused"},
		{how: "ask", from: "out", protos: "tcp udp", to: "nodeport@n1", want: "refused"},
	}},
}

var changes = []scenario{}
