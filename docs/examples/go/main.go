// Reads the events of all calls from Redis as one of a group of consumers, each event by one of them, none lost.
//
//	go run . [redis://127.0.0.1:6390/0] [group] [consumer]
//
// What was read but not acknowledged before a crash comes again: first our own, then that of consumers that are gone for a
// minute. So an event may come twice, with the same event_id. A Redis that goes away is waited for. Nothing is needed but the
// standard library: resp.go speaks with Redis. With a Redis package of your choice only main.go is left.
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	stream    = "medusa:events"
	count     = 64
	block     = 2 * time.Second
	wait      = 5 * time.Second
	abandoned = time.Minute
	pause     = 500 * time.Millisecond
)

// consumer is one member of a group.
type consumer struct {
	server *redis
	group  string
	name   string
}

// handle is yours. What returns an error is not acknowledged, and comes again after a restart.
func handle(event map[string]string) error {
	if event["type"] != "emotion" {
		_, err := fmt.Println(event["call"], event["type"])
		return err
	}
	_, err := fmt.Println(event["call"], event["role"], event["top"], event["confidence"], event["text"])
	return err
}

// take handles entries and acknowledges each one.
func (c consumer) take(entries []entry) error {
	for _, e := range entries {
		if len(e.fields) > 0 {
			if err := handle(e.fields); err != nil {
				return refusal(fmt.Sprintf("%s was not handled: %v", e.fields["event_id"], err))
			}
		}
		if _, err := c.server.ask("XACK", stream, c.group, e.id); err != nil {
			return err
		}
	}
	return nil
}

// read gives the entries after an id: our own that we did not acknowledge, or for ">" those that nobody has had.
func (c consumer) read(after string) ([]entry, error) {
	answer, err := c.server.ask("XREADGROUP", "GROUP", c.group, c.name,
		"COUNT", strconv.Itoa(count), "BLOCK", strconv.FormatInt(block.Milliseconds(), 10), "STREAMS", stream, after)
	if err != nil {
		return nil, err
	}
	if streams, _ := answer.([]any); len(streams) > 0 {
		if pair, _ := streams[0].([]any); len(pair) == 2 {
			return entriesOf(pair[1]), nil
		}
	}
	return nil, nil
}

// claim takes over what consumers read that are gone.
func (c consumer) claim() ([]entry, error) {
	answer, err := c.server.ask("XAUTOCLAIM", stream, c.group, c.name,
		strconv.FormatInt(abandoned.Milliseconds(), 10), "0", "COUNT", strconv.Itoa(count))
	if err != nil {
		return nil, err
	}
	if parts, _ := answer.([]any); len(parts) > 1 {
		return entriesOf(parts[1]), nil
	}
	return nil, nil
}

// consume handles everything that is ours: what was left over, then what comes. It returns when something breaks.
func (c consumer) consume() error {
	_, err := c.server.ask("XGROUP", "CREATE", stream, c.group, "0", "MKSTREAM")
	if err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") { // the group exists: it goes on where it was
		return err
	}
	for after := "0"; ; {
		found, err := c.read(after)
		if err != nil {
			return err
		}
		if err := c.take(found); err != nil {
			return err
		}
		switch {
		case after != ">" && len(found) > 0:
			after = found[len(found)-1].id
		case after != ">":
			after = ">"
		case len(found) == 0:
			if found, err = c.claim(); err != nil {
				return err
			}
			if err := c.take(found); err != nil {
				return err
			}
		}
	}
}

// run connects and consumes until something breaks.
func run(address, group, name string) error {
	server, err := dial(address)
	if err != nil {
		return err
	}
	defer server.conn.Close()
	return consumer{server, group, name}.consume()
}

// argument is the i-th one of the command line, or what stands in for it.
func argument(i int, otherwise string) string {
	if len(os.Args) > i {
		return os.Args[i]
	}
	return otherwise
}

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-stop
		os.Exit(0) // what is not acknowledged comes again
	}()
	for {
		err := run(argument(1, "redis://127.0.0.1:6390/0"), argument(2, "example"), argument(3, "go-1"))
		var no refusal
		if errors.As(err, &no) && !strings.HasPrefix(no.Error(), "LOADING") {
			log.Fatal(err)
		}
		log.Printf("Redis is away: %v", err)
		time.Sleep(pause)
	}
}
