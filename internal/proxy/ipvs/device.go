package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// deviceName is the dummy device that holds service addresses: IPVS sees only
// packets to addresses of the host. Its name is kube-proxy's.
const deviceName = "kube-ipvs0"

// device speaks with the kernel about addresses.
type device struct {
	*conn
	host  *netlink.Handle
	index uint32 // of kube-ipvs0
}

func dialDevice() (*device, error) {
	c, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &device{conn: c, host: h}, nil
}

func (d *device) close() error {
	d.host.Close()
	return d.conn.close()
}

// ensure makes the device unless it exists. It stays down: addresses of a
// device that is down are the host's all the same, and it answers no ARP.
func (d *device) ensure() error {
	link, err := d.host.LinkByName(deviceName)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		if err := d.host.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: deviceName}}); err != nil && !errors.Is(err, unix.EEXIST) {
			if errors.Is(err, unix.EOPNOTSUPP) {
				err = fmt.Errorf("%w: this kernel has no dummy devices: load module dummy", err)
			}
			return fmt.Errorf("make device %s: %w", deviceName, err)
		}
		link, err = d.host.LinkByName(deviceName)
	}
	if err != nil {
		return fmt.Errorf("find device %s: %w", deviceName, err)
	}
	if link.Type() != "dummy" {
		return fmt.Errorf("device %s exists and is no dummy device but %s: remove or rename it", deviceName, link.Type())
	}
	d.index = uint32(link.Attrs().Index)
	return nil
}

// address is one that the host has.
type address struct {
	netip.Addr
	bits  int
	index uint32
}

// addrs lists the addresses of all devices.
func (d *device) addrs() (list []address, err error) {
	var b batch
	b.begin(unix.RTM_GETADDR, 0)
	b.buf = append(b.buf, unix.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0) // struct ifaddrmsg
	b.end()
	err = d.dump(&b, func() { list = nil }, func(p []byte) {
		if len(p) < 8 || p[0] != unix.AF_INET && p[0] != unix.AF_INET6 {
			return
		}
		a := address{bits: int(p[1]), index: nfnetlink.Native.Uint32(p[4:])}
		nfnetlink.Attributes(p[8:], func(t uint16, v []byte) {
			x, ok := netip.AddrFromSlice(v)
			// On a point-to-point link IFA_ADDRESS is the other side's.
			if ok && (t == unix.IFA_LOCAL || t == unix.IFA_ADDRESS && !a.IsValid()) {
				a.Addr = x
			}
		})
		if a.IsValid() {
			list = append(list, a)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this host: %w", err)
	}
	return list, nil
}

// routers lists the next hops of the host's routes.
func (d *device) routers() (list []netip.Addr, err error) {
	routes, err := d.host.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the routes of this host: %w", err)
	}
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			list = append(list, a.Unmap())
		}
	}
	for _, r := range routes {
		add(r.Gw)
		for _, hop := range r.MultiPath {
			add(hop.Gw)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// put appends a request to add an address to the device, or to remove it.
func (d *device) put(b *batch, a netip.Addr, add bool) {
	typ, flags := uint16(unix.RTM_DELADDR), uint16(0)
	if add {
		typ, flags = unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL
	}
	b.begin(typ, flags)
	fam := byte(unix.AF_INET)
	var nodad byte
	if a.Is6() {
		// Nobody else is on the device to have it, too.
		fam, nodad = unix.AF_INET6, unix.IFA_F_NODAD
	}
	b.buf = append(b.buf, fam, byte(a.BitLen()), nodad, unix.RT_SCOPE_UNIVERSE)
	b.buf = nfnetlink.Native.AppendUint32(b.buf, d.index)
	b.buf = nfnetlink.AppendAttr(b.buf, unix.IFA_LOCAL, a.AsSlice())
	b.buf = nfnetlink.AppendAttr(b.buf, unix.IFA_ADDRESS, a.AsSlice())
	b.end()
}

// remove removes the device with all its addresses.
func (d *device) remove() error {
	link, err := d.host.LinkByName(deviceName)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = d.host.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove device %s: %w", deviceName, err)
	}
	return nil
}
