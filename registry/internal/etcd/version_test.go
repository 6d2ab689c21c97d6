package etcd

import "testing"

func TestCheckVersion(t *testing.T) {
	for version, ok := range map[string]bool{
		"3.3.27": false, "3.4.23": false, "3.4.30": false, "3.4.31": true, "3.5.0": false, "3.5.12": false,
		"3.5.13": true, "3.5.13-rc.0": true, "3.6.0": true, "3.7.0": true, "4.0.0": true, "2.3.8": false, "": false, "x.y.z": false,
	} {
		if err := checkVersion("http://e:1", version); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}
