package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	fleetSwitches = 60              // one a second
	maxLag        = 4 * time.Second // two intervals
)

// measureFleet prints how long after the answer to a switch the other instances follow it, with
// a switch a second. It fails if that is more than two intervals.
func measureFleet(sites, instances int) error {
	fmt.Println("| instances | sites | switches | followed after, median | at most |")
	fmt.Println("|--:|---|--:|--:|--:|")
	for what, kind := range map[string]kind{"with a directive each": literal, "of one directive": tenants} {
		lags, err := fleetLags(sites, instances, kind)
		if err != nil {
			return fmt.Errorf("%d sites %s: %w", sites, what, err)
		}
		slices.Sort(lags)
		most := lags[len(lags)-1]
		fmt.Printf("| %d | %d %s | %d | %s | %s |\n", instances, sites, what, fleetSwitches, short(lags[len(lags)/2]), short(most))
		if most > maxLag {
			return fmt.Errorf("followed after %s, want %s at most", most, maxLag)
		}
	}
	return nil
}

func fleetLags(sites, instances int, kind kind) (lags []time.Duration, err error) {
	dir, err := os.MkdirTemp("", "scale")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var fleet []*instance
	defer func() {
		for _, c := range fleet {
			c.stop()
		}
	}()
	for n := range instances {
		c := &instance{dir: filepath.Join(dir, "fleet"), name: strconv.Itoa(n), sites: sites, kind: kind}
		fleet = append(fleet, c)
		if err := c.prepare(); err != nil {
			return nil, err
		}
		if n == 0 {
			if err := c.storeRecords(); err != nil {
				return nil, err
			}
		}
		if err := c.startAndLoad(); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	var waiting sync.WaitGroup
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for n := range fleetSwitches {
		<-ticker.C
		// Sites that are far apart, each once.
		c, site := fleet[n%instances], n*sites/fleetSwitches
		on := !isOn(site)
		if err := c.turn(site, on); err != nil {
			return nil, err
		}
		answered := time.Now()
		for _, other := range fleet {
			if other == c {
				continue
			}
			waiting.Go(func() {
				failed := other.await(site, on)
				mu.Lock()
				defer mu.Unlock()
				err = errors.Join(err, failed)
				lags = append(lags, time.Since(answered))
			})
		}
	}
	waiting.Wait()
	return lags, err
}
