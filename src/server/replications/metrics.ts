/** Figures of replications in Prometheus' text format. */
import type { Replicator } from './replicator.js'

type Figures = ReturnType<Replicator['figures']>
const escaped = (text: string): string => text.replace(/[\\"\n]/g, (one) => one === '\n' ? '\\n' : `\\${one}`)

export function metricsText(figures: Figures, nowMs: number): string {
  const lines: string[] = []
  const gauge = (name: string, help: string, valueOf: (one: Figures[number]) => number | undefined): void => {
    const values = figures.flatMap((one) => {
      const value = valueOf(one)
      return value === undefined ? [] : [`${name}{repository="${escaped(one.repository)}",replication="${escaped(one.name)}"} ${value}`]
    })
    if (values.length > 0) lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} gauge`, ...values)
  }
  gauge('roost_replication_lag_snapshots', 'Snapshots that are not on the other side, when last looked.', ({ lag }) => lag?.snapshots)
  gauge('roost_replication_lag_bytes', 'Bytes that clients sent for them.', ({ lag }) => lag?.bytes)
  gauge('roost_replication_oldest_age_seconds', 'Age of the oldest of them; 0 when there is none.',
    ({ lag }) => lag === undefined ? undefined : lag.oldestAtMs === undefined ? 0 : Math.max(0, (nowMs - lag.oldestAtMs) / 1000))
  gauge('roost_replication_measured_age_seconds', 'How long ago that was looked at.', ({ lag }) => lag === undefined ? undefined : Math.max(0, (nowMs - lag.measuredAtMs) / 1000))
  gauge('roost_replication_last_success_age_seconds', 'How long ago a run ended well.',
    ({ lastSuccessAtMs }) => lastSuccessAtMs === undefined ? undefined : Math.max(0, (nowMs - lastSuccessAtMs) / 1000))
  gauge('roost_replication_failing', '1 when the last run, or the last look, failed.', ({ isFailing }) => Number(isFailing))
  gauge('roost_replication_conflicts', 'Runs that met a snapshot which differs from one of the same push, since the server started.', ({ conflicts }) => conflicts)
  gauge('roost_replication_running', '1 while a run is under way.', ({ progress }) => Number(progress !== undefined))
  gauge('roost_replication_run_wire_bytes', 'Bytes of chunks that the run under way has moved.', ({ progress }) => progress?.wireBytes)
  return `${lines.join('\n')}\n`
}
