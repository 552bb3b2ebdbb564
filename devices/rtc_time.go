package devices

import "time"

// rtcTime is a time of day, or a difference of two, in seconds since 1970 and nanoseconds of the second, 0 to 999,999,999.
// A time.Duration does not reach as far as the years that a guest can set.
type rtcTime struct {
	seconds, nanos int64
}

func (t rtcTime) add(d rtcTime) rtcTime {
	return rtcTime{t.seconds + d.seconds, t.nanos + d.nanos}.normal()
}

func (t rtcTime) minus(d rtcTime) rtcTime {
	return rtcTime{t.seconds - d.seconds, t.nanos - d.nanos}.normal()
}

func (t rtcTime) normal() rtcTime {
	switch {
	case t.nanos < 0:
		return rtcTime{t.seconds - 1, t.nanos + int64(time.Second)}
	case t.nanos >= int64(time.Second):
		return rtcTime{t.seconds + 1, t.nanos - int64(time.Second)}
	}
	return t
}

// ticks counts the periods of a frequency, which divides a second, up to t.
func (t rtcTime) ticks(hz int64) int64 { return t.seconds*hz + t.nanos*hz/int64(time.Second) }

// rtcMaxSeconds bounds the offset of a saved state, and twice as much its time: far beyond what the century register
// can say, and far from overflow.
const rtcMaxSeconds = 1 << 40

// within reports whether t is in its normal form and less than limit seconds from zero.
func (t rtcTime) within(limit int64) bool {
	return t.seconds > -limit && t.seconds < limit && t.nanos >= 0 && t.nanos < int64(time.Second)
}

func (r *RTC) clock() rtcTime {
	t := r.now()
	return rtcTime{t.Unix(), int64(t.Nanosecond())}
}

func (r *RTC) guestTime() rtcTime { return r.clock().add(r.offset) }

// showTime writes t into the time registers, in the format that register B asks for.
func (r *RTC) showTime(t rtcTime) {
	u := time.Unix(t.seconds, 0).UTC()
	r.ram[rtcSeconds] = r.encode(u.Second())
	r.ram[rtcMinutes] = r.encode(u.Minute())
	r.ram[rtcHours] = r.encodeHour(u.Hour())
	r.ram[rtcWeekday] = r.encode(int(u.Weekday()) + 1)
	r.ram[rtcDay] = r.encode(u.Day())
	r.ram[rtcMonth] = r.encode(int(u.Month()))
	year := max(u.Year(), 0)
	r.ram[rtcYear] = r.encode(year % 100)
	r.ram[RTCCenturyRegister] = r.encode(year / 100 % 100)
}

// setTime sets the clock to what the time registers say; a second begins now. Values that are no date, such as the 31st
// of February, carry over into the next field.
func (r *RTC) setTime() {
	year := r.decode(r.ram[RTCCenturyRegister])*100 + r.decode(r.ram[rtcYear])
	u := time.Date(year, time.Month(r.decode(r.ram[rtcMonth])), r.decode(r.ram[rtcDay]),
		r.decodeHour(r.ram[rtcHours]), r.decode(r.ram[rtcMinutes]), r.decode(r.ram[rtcSeconds]), 0, time.UTC)
	t := rtcTime{seconds: u.Unix()}
	r.offset = t.minus(r.clock())
	r.told = t
}

func (r *RTC) encode(v int) uint8 {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

func (r *RTC) decode(v uint8) int {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xf)
}

func (r *RTC) encodeHour(hour int) uint8 {
	if r.ram[rtcB]&rtcB24 != 0 {
		return r.encode(hour)
	}
	v := r.encode((hour+11)%12 + 1) // 12, 1, 2 … 11
	if hour >= 12 {
		v |= rtcHourPM
	}
	return v
}

func (r *RTC) decodeHour(v uint8) int {
	if r.ram[rtcB]&rtcB24 != 0 {
		return r.decode(v)
	}
	hour := r.decode(v&^rtcHourPM) % 12
	if v&rtcHourPM != 0 {
		hour += 12
	}
	return hour
}

const (
	secondsPerMinute = 60
	secondsPerHour   = 60 * secondsPerMinute
	secondsPerDay    = 24 * secondsPerHour
)

// nextAlarm is the first second after the given one at which the alarm registers match, if they ever do.
func (r *RTC) nextAlarm(after int64) (int64, bool) {
	second, anySecond := r.alarmField(r.ram[rtcSecondsAlarm], r.decode)
	minute, anyMinute := r.alarmField(r.ram[rtcMinutesAlarm], r.decode)
	hour, anyHour := r.alarmField(r.ram[rtcHoursAlarm], r.decodeHour)
	if second >= 60 || minute >= 60 || hour >= 24 {
		return 0, false
	}
	at := after + 1
	// Each round skips to the next hour, minute or second, so there are fewer than 24 + 60 + 60 of them in a day; a day
	// later everything has been seen.
	for at <= after+secondsPerDay {
		ofDay := ((at % secondsPerDay) + secondsPerDay) % secondsPerDay
		switch {
		case !anyHour && ofDay/secondsPerHour != hour:
			at += secondsPerHour - ofDay%secondsPerHour
		case !anyMinute && ofDay/secondsPerMinute%60 != minute:
			at += secondsPerMinute - ofDay%secondsPerMinute
		case !anySecond && ofDay%60 != second:
			at++
		default:
			return at, true
		}
	}
	return 0, false
}

func (r *RTC) alarmField(v uint8, decode func(uint8) int) (value int64, matchesAny bool) {
	if v&rtcAnyAlarm == rtcAnyAlarm {
		return 0, true
	}
	return int64(decode(v)), false
}
